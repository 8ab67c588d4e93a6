"""Folders of images that tests make."""

import numpy as np
from PIL import Image


def image_folder(folder, counts, classes=("a", "b"), channels=3):
    """Writes PNGs of noise to `folder`/<split>/<class>/, {split: number} of each class."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for label in classes:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (40, 50, channels)).astype("uint8")
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
