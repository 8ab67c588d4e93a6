"""Compares a training step with the same in plain PyTorch layers, in turn, on one thread each.

    python benchmarks/pytorch_step.py float32|bfloat16 [--runs=15]

The model has ndf 64, nrkhs 512 and ndepth 3; a batch is 64 pairs of views of 32 pixels. PyTorch
runs as written, with channels last, compiled, and with both. It starts from the same weights, and
in float32 its first loss has to agree to 1e-4. What has no finite loss is left out. It needs the
extra `torch`, and a C++ compiler.
"""

import argparse
import itertools

from amdim_tf.config import load_config
from amdim_tf.speed.step import step_flops
from amdim_tf.speed.timing import Table
from amdim_tf.training.building import build, check_config
from keras import ops
import numpy as np
import tensorflow as tf
import torch
from torch import nn
from torch.nn import functional as F

NDF, NRKHS, NDEPTH, BATCH, CLASSES = 64, 512, 3, 64, 10


class Residual(nn.Module):
    def __init__(self, inputs, filters, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, width, stride, bias=False)
        self.conv2 = nn.Conv2d(filters, filters, 1, bias=False)
        self.window, self.growth = (width, stride), filters - inputs

    def forward(self, x):
        hidden = F.relu(self.conv1(x))
        if self.window[0] > 1:
            x = F.avg_pool2d(x, *self.window)
        return self.conv2(hidden) + F.pad(x, (0, 0, 0, 0, 0, self.growth))


def block(inputs, filters, width, stride):
    first = Residual(inputs, filters, width, stride)
    return nn.Sequential(first, *(Residual(filters, filters, 1, 1) for _ in range(NDEPTH - 1)))


class Phi(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, NRKHS, 1, bias=False)
        self.conv2 = nn.Conv2d(NRKHS, NRKHS, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, NRKHS, 1)
        self.bn = nn.BatchNorm2d(NRKHS)

    def forward(self, x):
        return self.bn(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x)).float().flatten(2)


class Amdim(nn.Module):
    """Encoder, phi and probes, in the order in which ours has its variables."""

    def __init__(self):
        super().__init__()
        top = 4 * NDF
        self.to_7x7 = nn.Sequential(
            nn.Conv2d(3, NDF, 3),
            nn.ReLU(),
            Residual(NDF, NDF, 1, 1),
            block(NDF, 2 * NDF, 4, 2),
            block(2 * NDF, top, 2, 2),
        )
        self.to_5x5, self.to_3x3 = block(top, top, 3, 1), block(top, top, 3, 1)
        self.to_1x1 = nn.Sequential(Residual(top, NRKHS, 3, 1), nn.BatchNorm2d(NRKHS))
        self.phi5, self.phi7 = Phi(top), Phi(top)
        self.linear = nn.Linear(NRKHS, CLASSES)
        self.mlp = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(NRKHS, 1024, bias=False),
            nn.BatchNorm1d(1024),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(1024, CLASSES),
        )

    def embed(self, images):
        """{n: (B,nrkhs,n*n)}; each view by itself, since batch norm has statistics of its own."""
        f7 = self.to_7x7(images)
        f5 = self.to_5x5(f7)
        f1 = self.to_1x1(self.to_3x3(f5))
        return {1: f1.float().flatten(2), 5: self.phi5(f5), 7: self.phi7(f7)}

    def forward(self, view1, view2, locations):
        views = [self.embed(view1), self.embed(view2)]
        loss = 0
        for (a, b), where in zip(((0, 1), (1, 0)), locations, strict=True):
            of_5x5 = views[a][5].gather(2, where[:, None, None].expand(-1, NRKHS, 1))
            for n, m in ((1, 5), (1, 7), (5, 5)):
                loss = loss + nce(views[a][1] if n == 1 else of_5x5, views[b][m]) / 2
        f1 = torch.cat([view[1] for view in views])[:, :, 0].detach()
        return loss, self.linear(f1), self.mlp(f1)


def nce(antecedents, consequents):
    """The loss and regulariser of antecedents (B,D,1) and consequents (B,D,L)."""
    columns = consequents.permute(1, 0, 2).reshape(NRKHS, -1)
    scores = (antecedents[:, :, 0] @ columns).view(BATCH, BATCH, -1) / NRKHS**0.5
    penalty = 5e-2 * scores.square().mean()
    scores = 20 * torch.tanh(scores / 20)
    same = torch.eye(BATCH, dtype=torch.bool)
    others = scores.logsumexp(2).masked_fill(same, -torch.inf).logsumexp(1)
    positives = scores.diagonal().T
    return F.softplus(others[:, None] - positives).mean() + penalty


def classifier_loss(logits, labels):
    return F.cross_entropy(10 * torch.tanh(logits / 10), labels) + 1e-3 * logits.square().mean()


def weights_of(ours):
    """The variables of the model `ours` as PyTorch has them, in order."""
    layers = itertools.chain(*ours.encoder.stages, ours.objective.phis.values(), [ours.probes])
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    for variable in itertools.chain.from_iterable(each.trainable_variables for each in layers):
        yield torch.from_numpy(variable.numpy().transpose(axes[len(variable.shape)]))


def pytorch_step(ours, views, labels, locations, precision, last, compiled):
    """A function that trains a copy of `ours` in PyTorch by a step, and returns the NCE loss."""
    layout = torch.channels_last if last else torch.contiguous_format
    model = Amdim()
    for parameter, weight in zip(model.parameters(), weights_of(ours), strict=True):
        parameter.data.copy_(weight)
    model = model.to(memory_format=layout)
    images = [
        torch.from_numpy(view).permute(0, 3, 1, 2).contiguous(memory_format=layout)
        for view in views
    ]
    labels, locations = torch.from_numpy(np.tile(labels, 2)), torch.from_numpy(locations)
    optimizer = torch.optim.Adam(model.parameters(), 2e-4, (0.8, 0.999), weight_decay=1e-5)
    run = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss, *logits = run(*images, locations)
        (loss + sum(classifier_loss(each.float(), labels) for each in logits)).backward()
        optimizer.step()
        return float(loss)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("precision", choices=("float32", "bfloat16"))
    parser.add_argument("--runs", type=int, default=15)
    precision, runs = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    config = load_config("cifar10", "tiny")
    config.ndf, config.nrkhs, config.ndepth, config.batch_size = NDF, NRKHS, NDEPTH, BATCH
    config.precision = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    check_config(config)
    model = build(config, CLASSES, 10**6)
    model.make_train_function()
    generator = np.random.default_rng(0)
    views = generator.normal(size=(2, BATCH, 32, 32, 3)).astype("float32")
    labels = generator.integers(0, CLASSES, BATCH)
    draws, _ = model.draw(BATCH)
    embeddings = model.objective.normalise(model._project(ops.concatenate([*views])), True, 2)
    expected = float(model.objective.losses(embeddings, None, draws).total)
    variants = {
        ", ".join(["PyTorch", *["channels last"] * last, *["compiled"] * compiled]): pytorch_step(
            model, views, labels, np.array(draws[5], "int64"), precision, last, compiled
        )
        for compiled, last in itertools.product((False, True), repeat=2)
    }
    for name, step in list(variants.items()):
        loss = step()
        if not np.isfinite(loss):
            del variants[name]
            print(f"{name}: left out, since its first loss is not finite")
            continue
        print(f"{name}: first loss {loss:.5f}, ours {expected:.5f}")
        assert precision == "bfloat16" or abs(loss - expected) < 1e-4, name
    batches = iter(tf.data.Dataset.from_tensors((tuple(views), labels)).cache().repeat())
    ours = {"amdim_tf": lambda: float(model.train_function(batches)["loss"])}
    table = Table()
    seconds, *others = table.time(ours | variants, runs)
    table.add("amdim_tf, rate", step_flops(model, BATCH) / seconds / 1e9, "GFLOP/s")
    table.add("amdim_tf, speed", min(others) / seconds, "times the fastest of the others")


main()
