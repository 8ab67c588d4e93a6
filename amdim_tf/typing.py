"""Types of signatures."""

from typing import Any, TypeAlias

# A tensor of TensorFlow's or of Keras's backend, symbolic or not, or what becomes one. Docstrings
# give shapes and dtypes.
Tensor: TypeAlias = Any
# What `amdim_tf.config` makes: an ml_collections.ConfigDict.
Config: TypeAlias = Any
