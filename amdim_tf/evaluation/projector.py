"""Features with thumbnails and labels for the projector of TensorBoard."""

import pathlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorboard.plugins import projector

from amdim_tf.files import replacing, write_text

FOLDER = "projector"
# Sides of a thumbnail, and of the picture with all of them, which browsers can still show.
THUMBNAIL, SPRITE = 64, 8192


def write_projector(
    path: pathlib.Path,
    f1: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes what `tensorboard --logdir` of the folder `path`, or above it, shows as its projector.

    Args:
        path: a folder of TensorBoard's events.
        f1: (N,D).
        images: (N,S,S,3), in 0..1.
        labels: (N,), -1 if unknown.
        class_names: may be empty.

    Example:
    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> write_projector(folder, np.eye(4), np.zeros((4, 8, 8, 3)), np.arange(4) % 2, ("a", "b"))
    >>> (folder / "projector" / "classes.tsv").read_text().split()
    ['image', 'class', '0', 'a', '1', 'b', '2', 'a', '3', 'b']
    """
    folder = path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "f1.tsv") as unfinished:
        np.savetxt(unfinished, f1, fmt="%.6g", delimiter="\t")
    names = [" ".join(name.split()) for name in (*class_names, "unknown")]
    lines = [("image", "class"), *((str(i), names[label]) for i, label in enumerate(labels))]
    write_text(folder / "classes.tsv", "".join("\t".join(line) + "\n" for line in lines))
    columns = int(np.ceil(np.sqrt(len(images))))
    side = min(images.shape[1], THUMBNAIL, SPRITE // columns)
    with replacing(folder / "thumbnails.png") as unfinished:
        tf.io.write_file(str(unfinished), tf.io.encode_png(_sprite(images, columns, side)))

    config = projector.ProjectorConfig()
    shown = config.embeddings.add(tensor_name="f1")
    shown.tensor_path, shown.metadata_path = f"{FOLDER}/f1.tsv", f"{FOLDER}/classes.tsv"
    shown.sprite.image_path = f"{FOLDER}/thumbnails.png"
    shown.sprite.single_image_dim.extend([side, side])
    projector.visualize_embeddings(str(path), config)


def _sprite(images, columns, side):
    """The images (N,S,S,3) in rows of so many `columns`, each `side` pixels wide: uint8."""
    small = tf.image.resize(images, (side, side), "area")
    missing = columns**2 - len(images)
    tiles = tf.pad(small, [[0, missing]] + 3 * [[0, 0]])
    tiles = tf.reshape(tiles, (columns, columns, side, side, 3))
    rows = tf.reshape(tf.transpose(tiles, (0, 2, 1, 3, 4)), (columns * side, columns * side, 3))
    return tf.cast(tf.round(255 * rows), tf.uint8)
