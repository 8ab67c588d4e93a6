"""Any Keras model with spatial stages as an encoder."""

import re
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from amdim_tf.encoders.batch_norm import BatchNorm, views_in_batch
from amdim_tf.encoders.convolution import GroupedConvolution
from amdim_tf.encoders.encoder import ImageEncoder
from amdim_tf.errors import InputError
from amdim_tf.precision import at_least_float32
from amdim_tf.typing import Tensor

# That of batch norm, at most: the reference's.
MOMENTUM = 0.9
# {mode: (mean, std) of pixels in 0..1}, as keras.applications names and defines them.
NORMALISATIONS = {
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
    "built in": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


@keras.saving.register_keras_serializable("amdim_tf")
class Backbone(ImageEncoder):
    """A Keras model as an encoder: its maps, and the mean of the last one as f1.

    `f<n>` is the last tensor of n x n locations that the model computes, for each n > 1; tensors
    that are only padded or cropped do not count, nor does the input. f1 is the mean of the last
    map over its locations, in float32 at least. A model whose outputs are named `f<n>` decides
    itself which maps it has.

    The model becomes a part of the encoder, with its weights. Its batch norm becomes the project's
    `BatchNorm`, with statistics of the global batch by view, and averages over some ten updates, as
    the reference's. Its random layers, such as dropout and
    stochastic depth, become the identity, since a step must not depend on the number of replicas.

    Args:
        model: a functional, sequential or subclassed `keras.Model` of images (B,S,S,c).
        image_size: S; by default that of the model's input.
        normalisation: what the model expects of its input, one of "tf", "torch", "caffe" (which
            has channels blue, green, red; the encoder's are red, green, blue) and "built in"
            (pixels in 0..255); by default the images are normalised by their data's statistics.
        kwargs: arguments of `keras.Model`.

    Raises:
        InputError: the model has no spatial stages, or does not take images of that size.

    Example:
    >>> layers = [keras.Input((32, 32, 3))]
    >>> layers += [keras.layers.Conv2D(8, 3, 2, "same"), keras.layers.Conv2D(16, 3, 2, "same")]
    >>> encoder = Backbone(keras.Sequential(layers))
    >>> encoder.scales
    {1: 16, 8: 16, 16: 8}
    """

    def __init__(
        self,
        model: keras.Model,
        image_size: int | None = None,
        normalisation: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**{"dtype": model.dtype_policy} | kwargs)
        if normalisation not in (None, *NORMALISATIONS):
            raise InputError(
                f"normalisation must be one of {', '.join(NORMALISATIONS)}, or none. "
                f"Received: {normalisation!r}"
            )
        shape = _input_shape(model, image_size)
        self.image_size, _, self.channels = shape
        self.mode, self.normalisation = normalisation, _by_channel(normalisation, self.channels)
        dtype = at_least_float32(self.variable_dtype)
        self.maps = _with_maps(model, keras.Input(shape, dtype=dtype, name="images"))
        layers = [*self.maps._flatten_layers()]
        for layer in layers:
            _adapt(layer)
        self.use_bn = any(isinstance(layer, BatchNorm) for layer in layers)
        self.nrkhs = self.maps.output["f1"].shape[-1]
        self.built = True

    def trunk(self, images: Tensor, training: bool = False, views: int = 1) -> dict:
        if self.mode == "caffe":
            images = ops.flip(images, axis=-1)
        with views_in_batch(views):
            return self.maps(images, training=training)

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        """The layers that each map depends on, the largest map first."""
        maps = (self.maps.output[f"f{n}"] for n in reversed(self.scales) if n > 1)
        return [keras.Model(self.maps.input, each).layers for each in maps]

    def get_config(self) -> dict:
        model = keras.saving.serialize_keras_object(self.maps)
        own = {"model": model, "image_size": self.image_size, "normalisation": self.mode}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Backbone":
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        return cls(**config | {"model": model})


@keras.saving.register_keras_serializable("amdim_tf")
class Skipped(keras.layers.Layer):
    """What a layer of random draws becomes: the identity.

    Example:
    >>> tuple(Skipped()(keras.ops.ones((2, 3)), training=True).shape)
    (2, 3)
    """

    def call(self, inputs: Tensor, **options: Any) -> Tensor:
        return inputs

    def get_config(self) -> dict:
        return {"name": self.name, "trainable": self.trainable, "dtype": self.dtype_policy.name}


def _by_channel(mode, channels):
    """The (mean, std) of a mode for that many channels; None without a mode."""
    if mode is None or channels == 3:
        return NORMALISATIONS.get(mode)
    if mode not in ("tf", "built in"):
        raise InputError(f"normalisation={mode} needs 3 channels. Received: {channels}")
    mean, std = NORMALISATIONS[mode]
    return mean[:1] * channels, std[:1] * channels


def _input_shape(model: keras.Model, image_size: int | None) -> tuple[int, int, int]:
    """The shape (S,S,c) of the images that `model` will take."""
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):  # subclassed, and never called
        shape = (None, None, None, None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise InputError(f"A backbone must take images (B,S,S,c). Received: inputs {shape}")
    _, height, width, channels = shape
    side = image_size or height
    if not side:
        raise InputError("image_size must be given for a model that takes images of any size")
    if {height, width} - {None, side}:
        raise InputError(
            f"image_size must be the side of the model's images, which are {height}x{width}. "
            f"Received: image_size={image_size}"
        )
    return side, side, channels or 3


def _with_maps(model: keras.Model, images: keras.KerasTensor) -> keras.Model:
    """A model of `images` with the outputs `f1` (B,D) and `f<n>` (B,n,n,c), see `Backbone`."""
    outputs = _run_through(model, images)
    named = outputs if isinstance(outputs, dict) else {}
    if not all(re.fullmatch(r"f[1-9]\d*", str(name)) for name in named):
        named = {}
    flat = [x for x in keras.tree.flatten(outputs) if len(x.shape) == 4]
    maps = dict(named) or {
        f"f{x.shape[1]}": x
        for operation, x in _computed(keras.Model(images, outputs))
        if _is_map(x)
        and x.shape[1:] != images.shape[1:]
        and not isinstance(operation, keras.layers.ZeroPadding2D | keras.layers.Cropping2D)
    }
    stages = sorted(int(name[1:]) for name in maps if name != "f1")
    if not stages:
        raise InputError(
            "A backbone must have spatial stages, tensors (B,n,n,c) with n > 1. "
            f"Received: {model.name}, which has none at {images.shape[1]} pixels"
        )
    if "f1" not in maps:
        last = min(flat, key=lambda x: x.shape[1], default=maps[f"f{stages[0]}"])
        dtype = images.dtype  # full precision
        pool = keras.layers.GlobalAveragePooling2D("channels_last", dtype=dtype, name="f1")
        maps["f1"] = pool(last)
    return keras.Model(images, {"f1": maps["f1"]} | {f"f{n}": maps[f"f{n}"] for n in stages})


def _run_through(model: keras.Model, images: keras.KerasTensor) -> Any:
    """The outputs of `model`, with every layer of inner models a layer of its own."""

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.Model):
            return _run_through(layer, *args)
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            images = call(layer, images)
        return images
    if isinstance(model, keras.Function):
        return model._run_through_graph(images, operation_fn=lambda layer: layer, call_fn=call)
    try:
        return model.call(images)
    # Code of TensorFlow's own cannot be run on symbolic tensors, so the maps are its outputs.
    except Exception:
        return model(images)


def _computed(model: keras.Model) -> Iterator[tuple[keras.Operation, keras.KerasTensor]]:
    """The tensors that `model` computes, in order, each with the operation that does it."""
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            yield from ((node.operation, x) for x in node.output_tensors)


def _is_map(x: keras.KerasTensor) -> bool:
    """Whether `x` has the shape of a map, (B,n,n,c) with n > 1."""
    return len(x.shape) == 4 and x.shape[1] == x.shape[2] and (x.shape[1] or 0) > 1


def _adapt(layer: keras.layers.Layer) -> None:
    """Replaces batch norm, grouped convolutions and random layers by ours; weights stay."""
    # In place, so that it holds for layers inside of users' own layers, too.
    if isinstance(layer, keras.layers.BatchNormalization):
        if layer.axis not in (-1, 3):
            raise InputError(
                "A backbone must have channels last. "
                f"Received: {layer.name}, which normalises axis {layer.axis}"
            )
        layer.__class__ = BatchNorm
        # With Keras's 0.99 or 0.999, averages of a short training would be mostly those it began
        # with, and what is measured by them chance.
        layer.momentum = min(layer.momentum, MOMENTUM)
    elif isinstance(layer, keras.layers.Conv2D) and layer.groups > 1:
        layer.__class__ = GroupedConvolution
    elif hasattr(layer, "seed_generator"):
        layer.__class__ = Skipped
