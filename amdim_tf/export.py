"""Export: an encoder becomes a SavedModel that TF Serving can load."""

import pathlib
import shutil

import keras
import tensorflow as tf

from amdim_tf import views


def export_encoder(encoder, mean, std, directory):
    """Writes `encoder` as a SavedModel to `directory`, complete or not at all.

    Signatures, with dictionaries as output:
        serving_default: `images` uint8 (N,H,W,3), of any size, resized, cropped and normalised as
            at test time -> `f1` (N,nrkhs) float32.
        normalized: `images` float32 (N,S,S,3), normalised -> `f1`, `f5`, `f7`.

    Args:
        encoder: an `Encoder`.
        mean, std: of the normalisation, per channel, of pixels in [0, 1].
        directory: must not exist. TF Serving expects a number as its name.
    """
    size = encoder.image_size

    def normalized(images):
        # Without this check an image of the wrong shape can abort the server.
        return encoder(tf.ensure_shape(images, (None, size, size, 3)), training=False)

    def serving_default(images):
        images = tf.ensure_shape(images, (None, None, None, 3))
        images = tf.ensure_shape(views.center(images, size), (None, size, size, 3))
        return {"f1": normalized(views.normalize(images, mean, std))["f1"]}

    archive = keras.export.ExportArchive()
    for function, dtype, shape in (
        (serving_default, tf.uint8, (None, None, None, 3)),
        (normalized, tf.float32, (None, size, size, 3)),
    ):
        signature = [tf.TensorSpec(shape, dtype, name="images")]
        archive.add_endpoint(function.__name__, function, input_signature=signature)
    directory = pathlib.Path(directory)
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    archive.write_out(str(unfinished), verbose=False)
    unfinished.rename(directory)
