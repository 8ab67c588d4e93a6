"""Measures images per second: views from patches and JPEGs, and the exported encoder."""

import functools
import tempfile

import keras
import skimage.data
import tensorflow as tf

from amdim_tf.config import load_config
from amdim_tf.data import photographs, pipeline
from amdim_tf.data.data import Data
from amdim_tf.data.splits import Split
from amdim_tf.serving.loading import load_encoder, load_preprocess
from amdim_tf.serving.saved_model import export
from amdim_tf.speed.timing import Table, one_core
from amdim_tf.training.building import build
from amdim_tf.typing import Config

# Batches that are timed together, since pipelines make several at a time.
BURST = 8


def make_views(table: Table, runs: int) -> None:
    """Measures pairs of views per second on one core: 32 pixels from patches, 128 from JPEGs."""
    jpeg = tf.io.encode_jpeg(skimage.data.coffee()[:375, :500], quality=95)
    files = tf.data.Dataset.from_tensors((jpeg, tf.constant(0, tf.int64))).repeat(10**6)
    decode = functools.partial(tf.io.decode_jpeg, channels=3)
    jpegs = Data(Split(files, 10**6, "drawn"), None, None, (), decode, (None, None))
    sources = {
        32: (photographs.photo_patches(), "patches", load_config("photo_patches"), 256),
        128: (jpegs, "JPEGs of 500x375", load_config("imagenet2012"), 64),
    }
    decoded = iter(files.map(lambda record, _: tf.shape(decode(record))).batch(64))
    with one_core():
        for size, (data, source, config, batch) in sources.items():
            config.image_size, config.batch_size = size, batch
            batches = iter(pipeline.train_batches(data, config, 0, 10**4))
            name = f"views of {size} pixels from {source}, one core"
            several = functools.partial(lambda b: [next(b) for _ in range(BURST)], batches)
            (seconds,) = table.time({f"{name}, {BURST} batches of {batch}": several}, runs)
            table.add(f"{name}, speed", BURST * batch / seconds, "pairs/s")
        name = "decoding of these JPEGs, one core"
        (seconds,) = table.time({f"{name}, batch of 64": lambda: next(decoded)}, runs)
        table.add(f"{name}, speed", 64 / seconds, "JPEG/s")


def inference(table: Table, config: Config, batch: int, runs: int) -> None:
    """Measures images per second, uint8 to f1, with the exported encoder and the same in Keras."""
    with tempfile.TemporaryDirectory() as folder:
        target = export(build(config, 0, 1), config, folder)
        served = tf.saved_model.load(str(target)).signatures["serving_default"]
        model = keras.Sequential([load_preprocess(target), load_encoder(target, "f1")])
    for count in sorted({1, batch}):
        images = tf.zeros((count, config.image_size, config.image_size, 3), tf.uint8)
        functions = {
            f"exported encoder, batch of {count}": lambda x=images: served(images=x)["f1"].numpy(),
            f"the same in Keras, batch of {count}": lambda x=images: model.predict_on_batch(x),
        }
        for name, seconds in zip(functions, table.time(functions, runs), strict=True):
            table.add(f"{name}, speed", count / seconds, "images/s")
