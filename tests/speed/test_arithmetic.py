"""`step_flops` counts the products that are in the graph of a step."""

import math

import pytest
import tensorflow as tf
from every_objective import NAMES, batch_of, config_of, learner

from amdim_tf.encoders.amdim import Encoder
from amdim_tf.speed.step import step_flops
from amdim_tf.training.model import AMDIM

TRANSPOSED = "Conv2DBackpropInput"


def products(function):
    """Floating-point operations of the products in the graph of `function`, both ways.

    A forward product and two for the gradients, or one where the input is an image.
    """
    total = 0
    for op in tf.function(function).get_concrete_function().graph.get_operations():
        if op.type in ("MatMul", "Einsum"):
            summed = op.inputs[0].shape[-1:]
        elif op.type in ("Conv2D", TRANSPOSED):
            summed = op.inputs[1].shape[:-1]
        else:
            continue
        out = op.inputs[2] if op.type == TRANSPOSED else op.outputs[0]
        of_image = summed[-1] <= 3
        if of_image and op.type == "MatMul":
            continue  # the change of colours, which learns nothing
        total += (2 if of_image else 3) * 2 * math.prod((*out.shape, *summed))
    return total


def assert_it_is_that_of_the_graph(config):
    model = learner(config, "float32", classes=0)
    views, labels = batch_of(config)
    draws, _ = model.draw(len(labels))

    def loss():
        images = model.objective.present(views, draws)
        embeddings = model.objective.normalise(model._project(images), True, len(views))
        shown = {0: images} if model.objective.reconstructs else {}
        return model.objective.losses(embeddings | shown, labels, draws).total

    assert step_flops(model, len(labels)) == products(loss)


def test_the_scores_by_hand():
    model = AMDIM(Encoder(32, ndf=4, nrkhs=16, ndepth=2), classes=0)
    assert model.objective.flops(8) == 3 * 2 * 2 * 8 * 8 * (25 + 49 + 25) * 16


# ndf 8: fewer channels would be taken for those of an image.
@pytest.mark.parametrize("name", NAMES)
def test_the_arithmetic_of_an_objective(name):
    assert_it_is_that_of_the_graph(config_of(name, ndf=8))


@pytest.mark.parametrize("field", ["mixture_components", "views.small_crops"])
@pytest.mark.parametrize("value", [0, 3])
def test_the_arithmetic_of_the_method(field, value):
    assert_it_is_that_of_the_graph(config_of("amdim", ndf=8, **{field: value}))
