"""AMDIM in TensorFlow and Keras: self-supervised image representations (arXiv 1906.00910)."""

import importlib
import os
import sys
import warnings

from amdim_tf.processor import leaves_onednn_off

if (
    "tensorflow" in sys.modules
    and "TF_ENABLE_ONEDNN_OPTS" not in os.environ
    and leaves_onednn_off()
):
    warnings.warn(
        "TensorFlow was imported before amdim_tf, and leaves oneDNN off on this processor: a step "
        "takes up to 1.5 times as long. Import amdim_tf first, or set TF_ENABLE_ONEDNN_OPTS=1",
        stacklevel=2,
    )
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"

_PUBLIC = {
    "AMDIM": "training.model",
    "Backbone": "encoders.backbone",
    "Encoder": "encoders.amdim",
    "InputError": "errors",
    "Preprocess": "data.preprocess",
    "load_encoder": "serving.loading",
    "load_preprocess": "serving.loading",
}
__all__ = [*_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"amdim_tf.{_PUBLIC[name]}"), name)


# A command imports what it needs, when it needs it: its help does not wait for TensorFlow. While
# `python -m amdim_tf.<command>` is being found, argv[0] is "-m". To others the import alone makes
# the layers known to Keras, for `keras.models.load_model`.
if sys.argv[:1] != ["-m"] and os.path.basename("".join(sys.argv[:1])) != "amdim":
    globals().update({name: __getattr__(name) for name in _PUBLIC})
