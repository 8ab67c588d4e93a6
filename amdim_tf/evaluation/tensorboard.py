"""Pictures in TensorBoard while a model trains."""

import pathlib

import keras
import tensorflow as tf

from amdim_tf.data.data import Data
from amdim_tf.evaluation import pictures
from amdim_tf.typing import Config

# Test images to draw from.
IMAGES = 500


class Pictures(keras.callbacks.Callback):
    """Writes `pictures.draw` to TensorBoard every so many steps, and at the end of a training.

    Args:
        path: the folder of TensorBoard's events.
        every: steps from one set of pictures to the next.
        config: the config of the run.
        data: a `Data`.
    """

    def __init__(self, path: str | pathlib.Path, every: int, config: Config, data: Data):
        super().__init__()
        self.path, self.every, self.config, self.data = path, every, config, data

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.shown = pictures.choose(self.data, self.config, IMAGES)
        self.events = tf.summary.create_file_writer(str(self.path))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if int(self.model.step.numpy()) % self.every == 0:
            self.draw()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.draw()
        self.events.close()

    def draw(self) -> None:
        """Writes the pictures of the model as it is now."""
        drawn = pictures.draw(self.model, self.config, self.shown, self.data.class_names)
        with self.events.as_default(int(self.model.step.numpy())):
            for name, figure in drawn:
                tf.summary.image(name, pictures.to_pixels(figure)[None])
