"""Pictures in TensorBoard while a model trains."""

import keras
import tensorflow as tf

from amdim_tf.evaluation import pictures

# Test images that are looked at.
IMAGES = 500


class Pictures(keras.callbacks.Callback):
    """Writes `pictures.draw` to TensorBoard now and then, and at the end of a training.

    Args:
        path: of the events.
        every: steps between them.
        config: the run's.
        data: a `Data`.
    """

    def __init__(self, path, every, config, data):
        super().__init__()
        self.path, self.every, self.config, self.data = path, every, config, data

    def on_train_begin(self, logs=None):
        self.shown = pictures.choose(self.data, self.config, IMAGES)
        self.events = tf.summary.create_file_writer(str(self.path))

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step.numpy()) % self.every == 0:
            self.draw()

    def on_train_end(self, logs=None):
        self.draw()
        self.events.close()

    def draw(self):
        drawn = pictures.draw(self.model, self.config, self.shown, self.data.class_names)
        with self.events.as_default(int(self.model.step.numpy())):
            for name, figure in drawn:
                tf.summary.image(name, pictures.to_pixels(figure)[None])
