import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `amdim_tf` has it, which some tests import after TensorFlow.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def pytest_itemcollected(item):
    """Cases that are run before a release are not run among the long ones."""
    if item.get_closest_marker("release"):
        item.own_markers = [mark for mark in item.own_markers if mark.name != "long"]
