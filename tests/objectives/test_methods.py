"""The methods of Table 1 by hand: what they show the encoder, ask and compare."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from amdim_tf import Encoder, InputError
from amdim_tf.config import load_config
from amdim_tf.encoders.lab import LabEncoder, to_lab
from amdim_tf.encoders.patches import PatchEncoder, standardised
from amdim_tf.objectives import jigsaw
from amdim_tf.objectives.cmc import Cmc
from amdim_tf.objectives.cpc import Context, Cpc
from amdim_tf.objectives.exemplar import Exemplar
from amdim_tf.objectives.infomax_vae import InfomaxVae, decoder
from amdim_tf.objectives.jigsaw import Jigsaw
from amdim_tf.objectives.patch_offset import NEIGHBOURS, PatchOffset
from amdim_tf.objectives.patches import jittered
from amdim_tf.objectives.rotation import Rotation
from amdim_tf.objectives.supervised import Supervised
from amdim_tf.speed.step import step_flops
from amdim_tf.training.building import check_config
from amdim_tf.training.learner import Learner

generator = np.random.default_rng(0)


def small_encoder(**options):
    return Encoder(image_size=32, ndf=2, nrkhs=16, ndepth=1, **options)


def built(objective, size=112, grid=3):
    objective.build(PatchEncoder(small_encoder(), size, grid))
    return objective


def heads_that_see(objective, width, answer):
    """Replaces the classifier by `answer`, a function of the features (N,width)."""
    objective.hidden, objective.head = (
        lambda x: x,
        lambda x: ops.reshape(answer(ops.reshape(x, (-1, width))), (*x.shape[:-1], -1)),
    )


def test_rotations_and_their_answers():
    view = generator.normal(size=(3, 6, 6, 2))
    turned = Rotation().present([view], ()).numpy()
    for i, k in itertools.product(range(3), range(4)):
        np.testing.assert_array_equal(turned[3 * k + i], np.rot90(view[i], k))
    objective = Rotation()
    objective.head = lambda x: 100 * x  # each row says its own angle
    right = np.repeat(np.eye(4, dtype="float32"), 3, axis=0)
    found = objective.losses({1: ops.array(right)}, None, ())
    assert float(found.total) < 1e-6 and float(found.metrics["pretext_accuracy"]) == 1
    found = objective.losses({1: ops.array(right[::-1].copy())}, None, ())
    assert float(found.metrics["pretext_accuracy"]) == 0


def triplets_by_hand(x, views, margin):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    image, losses = np.tile(np.arange(len(x) // views), views), []
    for a, p in itertools.permutations(range(len(x)), 2):
        if image[a] == image[p]:
            others = distances[a, image != image[a]]
            beyond = others[others > distances[a, p]]
            negative = beyond.min() if len(beyond) else others.max()
            losses.append(max(margin + distances[a, p] - negative, 0))
    return np.mean(losses)


@pytest.mark.parametrize("views", [2, 3])
def test_semi_hard_triplets(views):
    x = generator.normal(size=(views * 5, 4))
    found = Exemplar(views=views).triplets(ops.array(x))
    assert float(found) == pytest.approx(triplets_by_hand(x, views, 0.5), rel=1e-5)
    with pytest.raises(InputError, match="at least 2.*exemplar. Received: views.number=1"):
        Exemplar(views=1)


def test_patches_are_cut_where_the_grid_has_them():
    encoder = PatchEncoder(small_encoder(), 65, 3)
    assert encoder.starts == [0, 16, 33]
    images = generator.normal(size=(2, 65, 65, 3)).astype("float32")
    patches = encoder.cut(images).numpy()
    for place, (i, j) in enumerate(itertools.product(range(3), repeat=2)):
        y, x = encoder.starts[i], encoder.starts[j]
        np.testing.assert_array_equal(patches[:, place], images[:, y : y + 32, x : x + 32])
    flat = standardised(patches[0]).numpy()
    np.testing.assert_allclose(flat.mean((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(flat.std((1, 2)), 1, atol=1e-4)


def test_f1_of_an_image_is_the_mean_of_its_patches():
    inner = small_encoder()
    encoder = PatchEncoder(inner, 64, 3)
    images = generator.normal(size=(2, 64, 64, 3)).astype("float32")
    each = [inner(standardised(patch))["f1"] for patch in np.moveaxis(encoder.cut(images), 1, 0)]
    np.testing.assert_allclose(encoder(images)["f1"], np.mean(each, axis=0), atol=1e-5)
    # Brightness and contrast of a patch do not matter.
    np.testing.assert_allclose(encoder(3 * images + 1)["f1"], encoder(images)["f1"], atol=1e-3)
    for size, grid in ((31, 3), (64, 1)):
        with pytest.raises(InputError, match=f"patch_grid at least 2.*patch_grid={grid}"):
            PatchEncoder(inner, size, grid)


def test_the_arithmetic_of_patches_and_copies():
    def flops(encoder, objective):
        return step_flops(Learner(encoder, 0, objective), 8)

    one = flops(small_encoder(), Supervised(views=1))
    assert one > 0
    assert flops(PatchEncoder(small_encoder(), 64, 3), Supervised(views=1)) == 9 * one
    classifier = 3 * 2 * (4 * 8) * 16 * 4
    assert flops(small_encoder(), Rotation()) == 4 * one + classifier


def test_jittered_patches_are_in_their_cells():
    side, size = 112, 32
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
    images = np.stack([places, places])
    for draws in (np.zeros((2, 9, 2)), np.full((2, 9, 2), 0.999), generator.random((2, 9, 2))):
        patches = jittered(images, size, ops.array(draws)).numpy()
        for image, place in itertools.product(range(2), range(9)):
            corner = [cell * side // 3 for cell in divmod(place, 3)]
            start = corner + np.floor(draws[image, place] * (side // 3 - size + 1)).astype(int)
            np.testing.assert_array_equal(patches[image, place, 0, 0], start)
            np.testing.assert_array_equal(patches[image, place, -1, -1], start + size - 1)
            assert all(start + size <= np.add(corner, side // 3))


def test_the_neighbours_of_a_patch_are_the_answers():
    assert NEIGHBOURS.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    objective = built(PatchOffset())
    # Each patch's f1 is its place, and the centre's is 4.
    heads_that_see(
        objective,
        32,
        lambda x: 100.0 * ops.cast((x[:, :1] == NEIGHBOURS) & (x[:, 16:17] == 4), "float32"),
    )
    maps = np.broadcast_to(np.arange(9.0).reshape(3, 3, 1), (2, 3, 3, 16)).astype("float32")
    found = objective.losses({3: ops.array(maps)}, None, ())
    assert float(found.total) < 1e-6 and float(found.metrics["pretext_accuracy"]) == 1


def test_the_permutations_and_their_answers():
    permutations = jigsaw.PERMUTATIONS
    assert permutations.shape == (100, 9)
    np.testing.assert_array_equal(np.sort(permutations), np.tile(np.arange(9), (100, 1)))
    apart = (permutations[:, None] != permutations).sum(-1)[~np.eye(100, dtype=bool)]
    assert apart.min() >= 6 and apart.mean() > 8

    objective = built(Jigsaw(orders=5))
    draws = objective.draw(0, ops.array(3), 2)
    orders = draws["orders"].numpy()
    assert orders.shape == (2, 5) and (orders >= 0).all() and (orders < 100).all()
    assert len(set(orders.ravel())) > 5
    heads_that_see(
        objective,
        9 * 16,
        lambda x: (
            ops.cast(
                ops.all(x[:, None, ::16] == permutations.astype("float32"), axis=-1), "float32"
            )
            * 100
        ),
    )
    maps = np.broadcast_to(np.arange(9.0).reshape(3, 3, 1), (2, 3, 3, 16)).astype("float32")
    found = objective.losses({3: ops.array(maps)}, None, draws)
    assert float(found.total) < 1e-6 and float(found.metrics["pretext_accuracy"]) == 1


def test_draws_are_those_of_the_image_and_the_step():
    objective = Jigsaw()
    four, two = objective.draw(0, ops.array(7), 4), objective.draw(0, ops.array(8), 4)
    np.testing.assert_array_equal(objective.draw(0, ops.array(7), 4)["orders"], four["orders"])
    assert not np.array_equal(four["jitter"], two["jitter"])
    assert not np.array_equal(four["jitter"], objective.draw(1, ops.array(7), 4)["jitter"])


def test_a_context_sees_no_row_below():
    context = Context(blocks=2, width=8)
    maps = generator.normal(size=(1, 5, 5, 4)).astype("float32")
    before = context(maps).numpy()
    for layer in context.convolutions:  # biases of zeros could hide what is seen
        layer.bias.assign(generator.normal(size=layer.bias.shape))
    before = context(maps).numpy()
    changed = maps.copy()
    changed[:, 3] += 1
    after = context(changed).numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3], after[:, 3])


def test_the_loss_of_cpc_by_hand():
    objective = built(Cpc(steps=1, width=6), 64, 3)
    shape = (4, 3, 3, 6)
    predicted, targets = generator.normal(size=(2, *shape)).astype("float32")
    objective.context, objective.target = (lambda x: x), (lambda x: ops.array(targets))
    objective.prediction = lambda x: ops.array(predicted)
    losses = []
    for row, image, column in itertools.product((1, 2), range(4), range(3)):
        context = predicted[image, row - 1, column]
        own = targets[image, row, column] @ context / np.sqrt(6)
        others = [
            targets[other, row] @ context / np.sqrt(6) for other in range(4) if other != image
        ]
        losses.append(np.log(np.exp(own) + np.exp(others).sum()) - own)
    found = objective.losses({3: ops.array(targets)}, None, ())
    assert float(found.total) == pytest.approx(np.mean(losses), rel=1e-5)
    bound = np.log(1 + 3 * 3) - np.mean(losses)
    assert float(found.metrics["bound"]) == pytest.approx(bound, rel=1e-4)


def test_the_colours_of_lab():
    """Of sRGB's black, white, grey, green and blue, by their usual values."""
    pixels = np.array([[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [0, 1, 0], [0, 0, 1]], "float32")
    expected = [
        [0, 0, 0],
        [100, 0, 0],
        [53.39, 0, 0],
        [87.73, -86.18, 83.18],
        [32.3, 79.19, -107.86],
    ]
    found = to_lab(pixels).numpy() * 50 + [50, 0, 0]
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_lightness_and_colour_have_an_encoder_each():
    encoder = LabEncoder(small_encoder(channels=1), small_encoder(channels=2))
    images = generator.uniform(size=(3, 32, 32, 3)).astype("float32")
    grey = images.mean(-1, keepdims=True).repeat(3, -1)
    f1, of_grey = encoder(images)["f1"].numpy(), encoder(grey)["f1"].numpy()
    assert not np.allclose(f1, of_grey)
    colour = of_grey[:, 16:]
    np.testing.assert_allclose(colour, colour[:1].repeat(3, 0), atol=1e-5)
    assert np.ptp(of_grey[:, :16], axis=0).max() > 1e-3


def test_the_loss_of_cmc_by_hand():
    objective = Cmc(width=8)
    objective.build(LabEncoder(small_encoder(channels=1), small_encoder(channels=2)))
    f1 = generator.normal(size=(5, 32)).astype("float32")
    pairs = zip(objective.heads, (f1[:, :16], f1[:, 16:]), strict=True)
    ours, theirs = (keras.utils.normalize(head(half).numpy()) for head, half in pairs)
    scores = ours @ theirs.T / 0.07
    losses = [np.mean(np.log(np.exp(each).sum(1)) - np.diag(each)) for each in (scores, scores.T)]
    found = objective.losses({1: ops.array(f1)}, None, ())
    assert float(found.total) == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_loss_of_infomax_vae_by_hand():
    objective = InfomaxVae(width=2, alpha=3.0, beta=0.5)
    objective.build(small_encoder())
    mean, logs, noise = generator.normal(size=(3, 4, 2)).astype("float32")
    view = generator.normal(size=(4, 32, 32, 3)).astype("float32")
    objective.code = lambda f1: ops.concatenate([mean, logs], axis=1)
    codes = []
    objective.decoder = lambda z, training: codes.append(z) or 0 * view
    objective.of_view, objective.of_code = (lambda f1: ops.array(mean)), lambda z: z
    found = objective.losses({0: ops.array(view), 1: ops.ones((4, 16))}, None, ops.array(noise))
    z = mean + np.exp(logs / 2) * noise
    np.testing.assert_allclose(codes[0], z, rtol=1e-5)
    reconstruction = (view**2).sum((1, 2, 3)).mean() / 2
    divergence = (np.exp(logs) + mean**2 - 1 - logs).sum(1).mean() / 2
    scores = 20 * np.tanh(mean @ z.T / 2**0.5 / 20)
    losses = [np.mean(np.log(np.exp(x).sum(1)) - np.diag(x)) for x in (scores, scores.T)]
    total = reconstruction + 0.5 * divergence + 3 * np.mean(losses)
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.metrics["information"]) == pytest.approx(
        np.log(4) - np.mean(losses), abs=1e-4
    )
    draws = objective.draw(0, ops.array(1), 4000).numpy()
    assert draws.mean() == pytest.approx(0, abs=0.05) and draws.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_decoders_of_all_sizes(side):
    assert decoder(4, side, 2, "float32").output_shape == (None, side, side, 2)


@pytest.mark.parametrize(
    "objective, size, grid, expected",
    [
        (PatchOffset(), 112, 4, "patch_grid must be 3, and patch_size at most 37"),
        (Jigsaw(), 64, 3, "patch_size at most 21, if the objective is jigsaw.*patch_size=32"),
    ],
)
def test_other_grids_are_refused(objective, size, grid, expected):
    with pytest.raises(InputError, match=expected):
        built(objective, size, grid)


@pytest.mark.parametrize(
    "objective, expected",
    [
        (Cpc(), "patch_size must be at least 1 if the objective is cpc. Received: patch_size=0"),
        (Cmc(), "lab must be True if the objective is cmc. Received: lab=False"),
    ],
)
def test_another_encoder_is_refused(objective, expected):
    with pytest.raises(InputError, match=expected):
        objective.build(small_encoder())


@pytest.mark.parametrize(
    "variant, fields, expected",
    [
        ("cmc", {"nrkhs": 100}, "nrkhs=50 .with lab, halves of ndf=32 and nrkhs=100.$"),
        ("cmc", {"channels": 1}, "lab is for images of 3 channels.* Received: channels=1"),
        ("jigsaw", {"patch_size": 20}, "image_size=20 .an image is a patch, of patch_size=20.$"),
    ],
)
def test_what_encoders_of_parts_cannot_be_is_said_as_it_was_given(variant, fields, expected):
    config = load_config("cifar10", variant=variant)
    config.update(fields)
    with pytest.raises(InputError, match=expected):
        check_config(config)
