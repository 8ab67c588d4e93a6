"""Progress bars: moving ones in a terminal, a line now and then in a log file."""

import sys

from tqdm import tqdm


def progress(total, initial=0, unit=" images", **options):
    """A bar of `tqdm` that counts to `total` from `initial` on."""
    return tqdm(
        total=total,
        initial=initial,
        unit=unit,
        unit_scale=True,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        **options,
    )
