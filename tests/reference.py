"""The authors' parameter names and layouts for our weights, to read the golden values."""

import json
import pathlib

import numpy as np

from amdim_tf.encoder import Encoder
from amdim_tf.model import AMDIM

GOLDEN = pathlib.Path(__file__).parent / "golden"
SIZES = (32, 64, 128)


class Golden:
    """One folder of golden values: `meta`, `weights` and `values` by the reference's names."""

    def __init__(self, size):
        self.meta = json.loads((GOLDEN / f"{size}.json").read_text())
        self.values = dict(np.load(GOLDEN / f"{size}.npz"))
        self.weights = dict(np.load(GOLDEN / f"{size}_weights.npz"))

    def model(self, dtype="float32"):
        sizes = (self.meta[k] for k in ("image_size", "ndf", "nrkhs", "ndepth"))
        encoder = Encoder(*sizes, dtype=dtype)
        model = AMDIM(encoder, self.meta["n_classes"], clip=self.meta["tclip"])
        for name, variable in named_variables(model).items():
            variable.assign(to_keras(self.weights[name]))
        return model


def named_variables(model):
    """{reference name: variable} of an `AMDIM` model without inner batch norm."""
    encoder = model.encoder
    # The reference counts a batch norm after f7 even where it is the identity.
    layers = [*encoder.stem, *encoder.to_7x7, None, encoder.to_5x5, encoder.to_3x3]
    layers += [encoder.to_1x1, encoder.bn1]
    names = {}
    for i, layer in enumerate(layers):
        prefix = f"encoder.module.layer_list.{i}"
        if layer in encoder.stem:
            names |= conv(f"{prefix}.conv", layer.conv)
        elif layer is encoder.bn1:
            names |= batch_norm(f"{prefix}.bn", layer)
        elif layer is not None:
            nested = hasattr(layer, "residual")
            for j, residual in enumerate(layer.residual if nested else [layer]):
                inner = f"{prefix}.layer_list.{j}" if nested else prefix
                names |= conv(f"{inner}.conv1", residual.conv1)
                names |= conv(f"{inner}.conv2", residual.conv2)
    for n, phi in ((5, model.phi5), (7, model.phi7)):
        prefix = f"encoder.module.rkhs_block_{n}"
        for part in ("conv1", "conv2", "shortcut"):
            names |= conv(f"{prefix}.{part}", getattr(phi, part))
        names |= batch_norm(f"{prefix}.bn_out.bn", phi.bn)
    mlp = [layer for layer in model.probes.mlp.layers if layer.weights]
    names |= conv("evaluator.block_glb_lin.block_forward.2", model.probes.linear)
    names |= conv("evaluator.block_glb_mlp.block_forward.2", mlp[0])
    names |= batch_norm("evaluator.block_glb_mlp.block_forward.3", mlp[1])
    names |= conv("evaluator.block_glb_mlp.block_forward.6", mlp[2])
    return names


def conv(prefix, layer):
    names = {f"{prefix}.weight": layer.kernel}
    return names | ({f"{prefix}.bias": layer.bias} if layer.use_bias else {})


def batch_norm(prefix, layer):
    return {
        f"{prefix}.weight": layer.gamma,
        f"{prefix}.bias": layer.beta,
        f"{prefix}.running_mean": layer.moving_mean,
        f"{prefix}.running_var": layer.moving_variance,
    }


def to_keras(array):
    """PyTorch's (out,in,h,w) and (out,in) to Keras's (h,w,in,out) and (in,out)."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim)))


def relative_error(ours, golden):
    """|ours - golden| / |golden|, both in the Euclidean norm."""
    ours, golden = np.asarray(ours, "float64"), np.asarray(golden, "float64")
    return np.linalg.norm(ours - golden) / np.linalg.norm(golden)
