"""The model card of an export: what it is, what it is worth, and what its limits are."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from amdim_tf import command
from amdim_tf.config import fields
from amdim_tf.data.decoding import MAX_PIXELS
from amdim_tf.evaluation.rows import COLUMNS, HEADINGS, ROWS
from amdim_tf.typing import Config


def model_card(
    config: Config,
    class_names: Sequence[str],
    dtype: str,
    signatures: Mapping,
    result: dict | None = None,
    compiled: bool = False,
) -> str:
    """The card as Markdown.

    Args:
        config: that of the run.
        class_names: those of its data, if any.
        dtype: that of the weights.
        signatures: {name: SignatureDef}, as a MetaGraphDef has them.
        result: what the run's result.json holds, if it is finished.
        compiled: whether XLA compiles it.
    """
    images = result["train_images"] if result else "an unknown number of"
    steps = f"{result['steps']} steps" if result else "an unfinished run"
    served = (
        "Compiled by XLA, for Python alone: a model server refuses each request."
        if compiled
        else "For TF Serving, and for `amdim_tf.load_encoder`."
    )
    lines = [["signature", "in", "out"]]
    for name, signature in sorted(signatures.items()):
        if not name.startswith("__"):  # TensorFlow's own
            lines.append([f"`{name}`", tensors(signature.inputs), tensors(signature.outputs)])
    three = config.channels == 3
    channels = "per channel red, green, blue" if three else f"for {config.channels} channels"
    pixels = "uint8" if three else "float32, pixels in 0..255,"
    files = ""
    if "encoded" in signatures:
        files = (
            "; `bytes` are JPEG, PNG, WebP, BMP, or the first frame of a GIF. A JPEG is turned as "
            "its Exif orientation says"
        )
    return f"""# AMDIM encoder: {config.dataset}, {config.size}

Image features learned without labels by Augmented Multiscale Deep InfoMax (arXiv 1906.00910).
{served} Weights are {dtype}, outputs float32.

## Signatures

{command.markdown(lines)}

N is the number of images, at least 1. `images` in {pixels} may be of any height and width, up
to {MAX_PIXELS} pixels{files}. f1 is the representation, f<n> are its maps, and r<n>
the embeddings that the objective scores.

## Training

{images} images of `{config.dataset}`, {steps}, objective `{config.objective}`, seed {config.seed}.

## Accuracy

{accuracies(result)}

## Normalisation

Pixels in 0..1, minus {tuple(config.mean)}, over {tuple(config.std)}, {channels}.
All signatures but `normalized` do this themselves.

## Limits

- Images are seen at {config.image_size} pixels; what is smaller than a pixel there is lost.
- It knows the kind of images that it was trained on; measure it on yours before you rely on it.
- Features may hold whatever the training images held, biases included.
- {f"The classifiers know {len(class_names)} classes." if class_names else "It has no classifiers."}

## Config

{command.markdown([["field", "value"], *([name, str(x)] for name, x in fields(config).items())])}
"""


def tensors(described: Mapping) -> str:
    """Names, types and shapes of {name: TensorInfo}, N images first."""
    texts = []
    for name, tensor in sorted(described.items()):
        dtype = tf.dtypes.as_dtype(tensor.dtype).name
        sides = [side.size for side in tensor.tensor_shape.dim][1:]
        unknown = iter("HW")
        sides = [str(side) if side >= 0 else next(unknown, "?") for side in sides]
        texts.append(f"`{name}` {dtype} ({','.join(['N', *sides])})")
    return ", ".join(texts)


def accuracies(result: dict | None) -> str:
    """The table of the accuracies of a `result`, in Markdown."""
    if not result or not result["accuracy"]:
        return "Not measured."
    lines, notes = [["on the test set", *HEADINGS.values()]], result.get("notes", {})
    for key, row in result["accuracy"].items():
        cells = (f"{row[name]:.3f}" if name in row else "" for name in COLUMNS)
        note = f" ({notes[key]})" if notes.get(key) else ""
        lines.append([ROWS[key] + note, *cells])
    return command.markdown(lines)
