import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `amdim_tf` has it, which some tests import after TensorFlow.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
