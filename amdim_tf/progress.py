"""Progress bars: moving ones in a terminal, a line now and then in a log file."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, initial: int = 0, unit: str = " images", **options: Any) -> tqdm:
    """A bar of `tqdm` that counts from `initial` to `total`."""
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        **options,
    )
