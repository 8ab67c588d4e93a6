"""AMDIM in TensorFlow and Keras: self-supervised image representations (arXiv 1906.00910)."""

import os
import sys

# While `python -m amdim_tf.<command>` is being found, argv[0] is "-m". TensorFlow's own log, which
# on a machine without GPU starts with harmless errors, then stays out of the command's output.
if sys.argv[:1] == ["-m"]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow leaves oneDNN off on processors without AVX-512, and is then twice as slow.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from amdim_tf.encoder import Encoder
from amdim_tf.errors import InputError
from amdim_tf.loading import load_encoder, load_preprocess
from amdim_tf.model import AMDIM
from amdim_tf.preprocess import Preprocess

__version__ = "0.1.0"
__all__ = ["AMDIM", "Encoder", "InputError", "Preprocess", "load_encoder", "load_preprocess"]
