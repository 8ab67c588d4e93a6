"""A data set for training and measuring: splits of records, and how one becomes an image."""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from amdim_tf.data import decoding
from amdim_tf.data.exif import orientation
from amdim_tf.data.failures import Failures, fingerprint
from amdim_tf.data.splits import Split
from amdim_tf.typing import Tensor

# The label of images without class.
UNLABELLED = -1


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set.

    Records are small, so that shuffling and skipping them costs little: a record is the bytes of a
    file, or its name. The label of images without class is -1.

    Args:
        train: images to train the encoder on.
        probe, test: images to train classifiers on and to score by; None without classes.
        class_names: the names of the classes.
        decode: maps a record to an image (H,W,C) uint8, or float32 in [0, 255].
        image_shape: (H,W) of all images; (None, None) if it differs.
        note: what was done to the images so that they fit, if anything.
        read: maps a record to the bytes of its file.
        name: maps the bytes of a record to the name by which `failures` knows it.
        reason: maps the bytes of a file to the reason why it is not decoded; "" if it is.
        failures: the images that turn out to be bad.
        channels: C.
        masks: maps "known" or "test" to a dataset of (image, mask) that `probe` or `test` has, in
            their order, as files; None for data without masks of segments.
    """

    train: Split
    probe: Split | None
    test: Split | None
    class_names: tuple
    decode: Callable
    image_shape: tuple
    note: str = ""
    read: Callable = dataclasses.field(default_factory=lambda: tf.identity)
    name: Callable = fingerprint
    reason: Callable = decoding.reason
    failures: Failures = dataclasses.field(default_factory=lambda: Failures(0, 0))
    channels: int = 3
    masks: Callable | None = None

    def record(self) -> dict:
        """What a run is trained on, as JSON has it: classes, and numbers and digests of images."""
        splits = {name: getattr(self, name) for name in ("train", "probe", "test")}
        return {"classes": list(self.class_names)} | {
            name: split and {"images": split.size, "digest": split.digest}
            for name, split in splits.items()
        }

    def lose(self, records: Sequence[bytes]) -> None:
        """Adds the bad images of `records`, an array (N,), to `failures`."""
        for record in records:
            name = self.name(record)
            if name not in self.failures:
                self.failures.add(name, self._why(record))

    def _why(self, record):
        try:
            contents = self.read(tf.constant(record)).numpy()
        except tf.errors.OpError:
            return "it cannot be read"
        return (
            self.reason(contents)
            or "another shape than the others' or its mask's, or no valid label"
        )

    def decode_window(self, record: Tensor, boxes_of: Callable) -> tuple[Tensor, Tensor]:
        """The window of an image that its crops cover; of an upright JPEG, only that is decoded.

        Args:
            record: that of the image.
            boxes_of: maps height and width to the window and the crops, as `views.crop_boxes` does.

        Returns:
            The window (h,w,C) as `decode` gives it, and the crops in it (2,4) int32.
        """

        def of_jpeg():
            height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(contents))
            window, boxes = boxes_of(height, width)
            return tf.image.decode_and_crop_jpeg(contents, window, 3), boxes

        def of_other():
            image = self.decode(record)
            window, boxes = boxes_of(tf.shape(image)[0], tf.shape(image)[1])
            top, left, height, width = tf.unstack(window)
            return image[top : top + height, left : left + width], boxes

        if self.channels != 3:
            return of_other()
        contents = decoding.plausible(self.read(record))
        upright = tf.io.is_jpeg(contents) & (orientation(contents) == 1)
        return tf.cond(upright, of_jpeg, of_other)
