"""The embedded data: patches of the photographs that scikit-image ships."""

import numpy as np

from amdim_tf.data.data import Data
from amdim_tf.data.splits import in_memory

PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "motorcycle",
    "retina",
    "rocket",
)
# A patch whose channels all deviate by less than this many grey levels shows nothing.
FLAT = 4


def photo_patches(
    size: int = 32, train_count: int = 300, test_count: int = 60, seed: int = 0
) -> Data:
    """Patches of the 14 photographs that scikit-image ships, class = photograph.

    Training patches come from the left 70 % of each photograph and test patches from the right
    30 %, so none overlap. Flat patches are dropped; `seed` draws which of the others are kept.

    Args:
        size: side of a patch in pixels.
        train_count, test_count: the most patches of a class.
    """
    train, test = (in_memory(*each) for each in _patches(size, train_count, test_count, seed))
    return Data(train, train, test, PHOTOGRAPHS, lambda image: image, (size, size))


def photo_pairs(
    size: int = 32, train_count: int = 300, test_count: int = 60, seed: int = 0
) -> Data:
    """The patches of `photo_patches`, each with the right half of a patch of another photograph.

    The class is still that of the left half. Mixture features may find what tells the halves apart.
    """
    generator, splits = np.random.default_rng(seed), []
    for images, labels in _patches(size, train_count, test_count, seed):
        others = [generator.choice(np.flatnonzero(labels != label)) for label in labels]
        pairs = np.concatenate([images[:, :, : size // 2], images[others, :, size // 2 :]], axis=2)
        splits.append(in_memory(pairs, labels))
    train, test = splits
    return Data(train, train, test, PHOTOGRAPHS, lambda image: image, (size, size))


def _patches(size, train_count, test_count, seed):
    """Images (N,size,size,3) and labels (N,) of `photo_patches`, to train on and to test on."""
    generator = np.random.default_rng(seed)
    splits = {"train": [], "test": []}
    for label, name in enumerate(PHOTOGRAPHS):
        photograph = _photograph(name)
        border = int(0.7 * photograph.shape[1])
        for split, half, count in (
            ("train", photograph[:, :border], train_count),
            ("test", photograph[:, border:], test_count),
        ):
            windows = np.lib.stride_tricks.sliding_window_view(half, (size, size), (0, 1))
            windows = windows[:: size // 2, :: size // 2].reshape(-1, 3, size, size)
            patches = windows.transpose(0, 2, 3, 1)
            patches = generator.permutation(patches[patches.std((1, 2)).max(1) >= FLAT])
            splits[split] += [(patch, label) for patch in patches[:count]]

    for pairs in splits.values():
        generator.shuffle(pairs)
        yield tuple(map(np.stack, zip(*pairs, strict=True)))


def _photograph(name):
    import skimage.data

    name = {"cat": "chelsea", "motorcycle": "stereo_motorcycle"}.get(name, name)
    photograph = getattr(skimage.data, name)()
    if isinstance(photograph, tuple):  # the stereo pair: left, right, disparity
        photograph = photograph[0]
    if photograph.ndim == 2:
        photograph = np.repeat(photograph[..., None], 3, axis=-1)
    return photograph
