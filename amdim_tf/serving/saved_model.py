"""A model becomes a SavedModel for TF Serving; the command `export` lists the files."""

import inspect
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from amdim_tf.config import fields
from amdim_tf.data.preprocess import Preprocess, finite, some
from amdim_tf.errors import InputError
from amdim_tf.files import local, replacing, write_json, write_text
from amdim_tf.lock import locked
from amdim_tf.serving import self_check
from amdim_tf.serving.model_card import model_card
from amdim_tf.training.averaging import values
from amdim_tf.training.run_directory import METADATA, environment
from amdim_tf.training.run_files import to_config
from amdim_tf.typing import Config

# Channels that image files other than TIFF have.
IN_FILES = (1, 3, 4)
XLA_PREFIX = "python-xla-"


def export(
    model: keras.Model,
    config: Config,
    folder: str | pathlib.Path,
    version: int | None = None,
    class_names: Sequence[str] = (),
    result: dict | None = None,
    compiled: bool = False,
) -> pathlib.Path:
    """Writes `model` to `folder`/<version>, checked and complete, or not at all.

    Signatures, with dictionaries of these names in and out:
        serving_default: `images` uint8 (N,H,W,3), any size, prepared as at test time -> `f1`
            (N,nrkhs) float32. With C other than 3 channels here and below float32 (N,H,W,C) in
            [0, 255].
        encoded, for 1, 3 or 4 channels: `bytes` string (N), image files as `channels.decode` takes
            them, without TIFF -> `f1`.
        normalized: `images` float32 (N,S,S,C), normalised -> `f1`, the maps `f<n>` (N,n,n,c), and
            for AMDIM the embeddings `r1` (N,nrkhs) and `r<n>` (N,n,n,nrkhs).
        classify, if there are classes: `images` uint8 (N,H,W,3) -> `linear_logits`,
            `mlp_logits`, `linear_probabilities` (N,classes) float32, and `classes` (N) string, the
            name of the class that the linear classifier finds likeliest.

    Args:
        model: an `AMDIM` or `Classifier`, its encoder in float32 or bfloat16.
        config: that of its run.
        folder: the one that a server polls.
        version: a number; by default the next one.
        class_names: names of the classes, if any.
        result: what result.json holds, for the model card.
        compiled: whether XLA compiles it. A server refuses that, so it goes to a folder that no
            server takes up.

    Returns:
        The folder of the version.

    Raises:
        InputError: the version exists, or the folder cannot be written.
        ExportError: the self-check found something; nothing was published.
    """
    folder = local(folder, "output")
    with locked(folder, "output"):
        try:
            target = folder / (XLA_PREFIX * compiled + str(version or next_version(folder)))
            if target.exists():
                raise InputError(f"version must be a new one. Received: {target}, which exists")
            with replacing(target) as unfinished:
                write(model, config, unfinished, class_names, result, compiled)
        except (OSError, tf.errors.OpError) as error:
            raise InputError(
                f"output must be a folder that can be written: {error}. Received: output={folder}"
            ) from error
    return target


def next_version(folder: pathlib.Path) -> int:
    """One more than the largest version in `folder`."""
    return 1 + max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)


def write(
    model: keras.Model,
    config: Config,
    folder: pathlib.Path,
    class_names: Sequence[str],
    result: dict | None,
    compiled: bool,
) -> None:
    """Writes and checks a version, see `export`, that nobody sees yet."""
    # Raw variables: a module that held Keras's layers would not load in a server.
    module, stored = tf.Module(), {layer.name: values(layer) for layer in model.layers}
    for name, variables in stored.items():
        setattr(module, name, variables)
    served = signatures(model, config, class_names, compiled)
    tf.saved_model.save(module, str(folder), signatures=served)
    examples = make_examples(model, config, class_names)
    dtype = model.encoder.dtype_policy.name
    metadata = {"config": fields(config), "class_names": class_names, "dtype": dtype}
    metadata |= {"compiled": compiled}
    (folder / METADATA).parent.mkdir(exist_ok=True)
    write_json(folder / METADATA, metadata | environment())
    write_card(folder, result)
    if compiled:
        self_check.check_in_python(folder, examples, dtype)
        return
    (folder / "batching_params.pbtxt").write_text(batching_parameters())
    write_warmup(examples, folder / self_check.WARMUP)
    weights = sum(math.prod(variable.shape) for each in stored.values() for variable in each)
    self_check.check(folder, examples, weights, dtype)


def write_card(folder: pathlib.Path, result: dict | None) -> None:
    """Writes or replaces the model card of the export in `folder`.

    Args:
        result: what the run's result.json holds, if there is one.
    """
    metadata = json.loads((folder / METADATA).read_text())
    card = model_card(
        to_config(metadata["config"]),
        metadata["class_names"],
        metadata["dtype"],
        self_check.read_graph(folder).signature_def,
        result,
        metadata.get("compiled", False),
    )
    write_text(folder / "MODEL_CARD.md", card)


def signatures(
    model: keras.Model, config: Config, class_names: Sequence[str], compiled: bool = False
) -> dict[str, Callable]:
    """{name: tf.function}, see `export`."""
    size, channels, dtype = config.image_size, config.channels, _dtype(config)
    preprocess = Preprocess.of(config)

    @tf.function(autograph=False, jit_compile=compiled)
    def features(images):
        return {name: tf.cast(x, tf.float32) for name, x in model.features(images).items()}

    def f1_of(images):
        return features(images)["f1"]

    def serving_default(images):
        return {"f1": f1_of(preprocess(images))}

    def encoded(bytes):
        return {"f1": f1_of(preprocess.decode(bytes))}

    def normalized(images):
        # Without this an image of a wrong shape can abort the server.
        return features(finite(some(tf.ensure_shape(images, (None, size, size, channels)))))

    def classify(images):
        logits = model.probes(f1_of(preprocess(images)))
        best = tf.argmax(logits["linear"], axis=-1)
        return {
            "linear_logits": logits["linear"],
            "mlp_logits": logits["mlp"],
            "linear_probabilities": tf.nn.softmax(logits["linear"]),
            "classes": tf.gather(tf.constant(class_names), best),
        }

    def concrete(function, dtype, *shape):
        (name,) = inspect.signature(function).parameters
        spec = tf.TensorSpec((None, *shape), dtype, name)
        return tf.function(function, [spec], autograph=False)

    served = {"serving_default": concrete(serving_default, dtype, None, None, channels)}
    if channels in IN_FILES:
        served["encoded"] = concrete(encoded, tf.string)
    served["normalized"] = concrete(normalized, tf.float32, size, size, channels)
    if class_names:
        served["classify"] = concrete(classify, dtype, None, None, channels)
    return served


def _dtype(config):
    """The dtype of images before they are normalised: three channels come in 8 bits."""
    return tf.uint8 if config.channels == 3 else tf.float32


def make_examples(
    model: keras.Model, config: Config, class_names: Sequence[str]
) -> dict[str, tuple[dict, dict]]:
    """{signature: (inputs, outputs)} for two random images; Keras computes the outputs."""
    size, channels = config.image_size, config.channels
    preprocess = Preprocess.of(config)
    shape = (2, size + 9, 2 * size, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    images = pixels.astype(_dtype(config).as_numpy_dtype)

    def features_of(images):
        return {name: np.float32(value) for name, value in model.features(images).items()}

    normalised = preprocess(images)
    features = features_of(normalised)
    examples = {"serving_default": ({"images": images}, {"f1": features["f1"]})}
    if channels in IN_FILES:
        encode = (tf.io.encode_png, tf.io.encode_png if channels == 4 else tf.io.encode_jpeg)
        files = [each(image).numpy() for each, image in zip(encode, pixels, strict=True)]
        of_files = features_of(tf.stack([preprocess.file(file) for file in files]))
        examples["encoded"] = ({"bytes": np.array(files, object)}, {"f1": of_files["f1"]})
    examples["normalized"] = ({"images": normalised.numpy()}, features)
    if class_names:
        logits = {name: value.numpy() for name, value in model.probes(features["f1"]).items()}
        best = logits["linear"].argmax(-1)
        outputs = {
            "linear_logits": logits["linear"],
            "mlp_logits": logits["mlp"],
            "linear_probabilities": tf.nn.softmax(logits["linear"]).numpy(),
            "classes": np.array([class_names[i].encode() for i in best], object),
        }
        examples["classify"] = ({"images": images}, outputs)
    return examples


def write_warmup(examples: dict[str, tuple[dict, dict]], path: pathlib.Path) -> None:
    """Writes requests for the first image of each example, which a server answers at its start."""
    with tf.io.TFRecordWriter(str(path)) as records:
        for name, (inputs, _) in examples.items():
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name="amdim", signature_name=name),
                inputs={key: tf.make_tensor_proto(array[:1]) for key, array in inputs.items()},
            )
            log = prediction_log_pb2.PredictLog(request=request)
            records.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def batching_parameters() -> str:
    """How a server joins requests to batches, as TF Serving's BatchingParameters."""
    # Without `allowed_batch_sizes`: to fill a batch up to one of them a server copies the first
    # image of the last request, and if that request is empty, the process ends.
    sizes = {"max_batch_size": 64, "batch_timeout_micros": 2000, "max_enqueued_batches": 100}
    return "".join(f"{name} {{ value: {size} }}\n" for name, size in sizes.items())
