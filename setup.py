"""What pyproject.toml cannot say: the configs, which lie beside the package, are a part of it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["amdim_tf*"]), "amdim_tf.configs"])
