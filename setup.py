"""The configs lie next to the package and are installed inside it: pyproject.toml cannot say so."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["amdim_tf*"]), "amdim_tf.configs"])
