import pathlib

from setuptools import find_packages, setup

BEAM = ["apache-beam>=2.60"]
ONNX = ["tf2onnx>=1.17", "onnxruntime"]

setup(
    name="amdim_tf",
    version="0.1.0",
    description="AMDIM, self-supervised image representations, in TensorFlow and Keras",
    long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The configs are installed inside the package, so that they travel with it.
    packages=[*find_packages(include=["amdim_tf*"]), "amdim_tf.configs"],
    package_dir={"amdim_tf.configs": "configs"},
    package_data={"amdim_tf.data": ["fast_autoaugment.json"]},
    install_requires=[
        "tensorflow>=2.20",
        "keras>=3.12",
        "tensorflow-datasets>=4.9.9",
        "tensorflow-serving-api>=2.20",
        "importlib_resources",  # tensorflow-datasets 4.9 needs it to prepare data, undeclared
        "tensorboard",
        "absl-py",
        "ml_collections>=1.0",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "matplotlib",
        "pyarrow",
        "tqdm",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "beam": BEAM,
        "onnx": ONNX,
        "torch": ["torch"],
        "test": ["pytest", "pytest-xdist", "ruff", "pillow", "pyyaml", *BEAM, *ONNX],
    },
)
