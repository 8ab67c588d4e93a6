"""A linear classifier on each location of a map, against masks."""

import json

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from amdim_tf.config import load_config
from amdim_tf.data import views
from amdim_tf.encoders.amdim import Encoder
from amdim_tf.errors import InputError
from amdim_tf.evaluation.cells import Cells
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.evaluation.regions import Regions, overlap
from amdim_tf.evaluation.results import title
from amdim_tf.training.building import build, check_config
from amdim_tf.training.run_directory import RunDirectory
from amdim_tf.training.run_files import evaluation_config


def masked_set(tmp_path, masks=True, broken=False):
    """A TFDS set of squares, white or striped, on a dark ground, with their masks."""
    generator = np.random.default_rng(0)
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    features = {"image": image, "label": tfds.features.ClassLabel(names=["white", "striped"])}
    if masks:
        features["segmentation_mask"] = tfds.features.Image(shape=(None, None, 1))

    def examples(count):
        for i in range(count):
            height, width = 40 + i % 3, 44
            pixels = generator.integers(0, 60, (height, width, 3)).astype("uint8")
            mask = np.ones((height, width, 1), "uint8")
            top, left = generator.integers(4, 16, 2)
            inside = np.s_[top : top + 20, left : left + 20]
            pixels[inside] = 230
            if i % 2:
                pixels[inside][::2] = 40
            mask[inside] = 3 + 4 * (i % 2)
            mask[top - 1, left : left + 20] = 255
            if broken and i == 1:
                mask = mask[:-2]
            example = {"image": pixels, "label": i % 2}
            yield i, example | ({"segmentation_mask": mask} if masks else {})

    tfds.dataset_builders.store_as_tfds_dataset(
        name="squares",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": list(examples(40)), "test": list(examples(13))},
        data_dir=tmp_path / "data",
    )
    return tmp_path / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory whose encoder is as it was drawn."""
    config = load_config("photo_patches")
    config.update({"ndf": 8, "nrkhs": 64, "ndepth": 1, "batch_size": 32})
    check_config(config)
    run = RunDirectory(tmp_path_factory.mktemp("drawn") / "run", config)
    run.claim_data({"classes": [], "train": None, "probe": None, "test": None})
    run.save(build(config, 0, 10), 1)
    return run.path


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch):
    monkeypatch.setattr("amdim_tf.evaluation.classifiers.PROBE_EPOCHS", 5)


def measure(run, data, bad_images=0.0, **options):
    config = evaluation_config(run, "squares")
    config.bad_images = bad_images
    found = evaluate(run, config, ("segmentation",), data, **options)
    return found["segmentation"]


@pytest.mark.long
def test_squares_are_found(run, tmp_path, capsys):
    result = measure(run, masked_set(tmp_path))
    accuracy = result["accuracy"]
    assert list(accuracy["per_class"]) == ["1", "3", "7"]
    assert accuracy["mean_iou"] == pytest.approx(
        np.mean(list(accuracy["per_class"].values())), abs=1e-3
    )
    # Cells are coarser than squares, so no classifier is right about each pixel.
    assert 0.5 < accuracy["mean_iou"] < 0.95
    low, high = accuracy["interval"]
    assert low < accuracy["mean_iou"] < high
    assert result["test_images"] == 13
    assert "mean IoU" in title(result) and title(result) in capsys.readouterr().out
    folder = run / "evaluation"
    assert (folder / "squares-segmentation.png").exists()
    assert not list((folder / "features").glob("*"))
    assert measure(run, tmp_path / "data") == result
    assert "measured before" in capsys.readouterr().out

    other = measure(run, tmp_path / "data", features="f5", label_fraction=0.5)
    assert other["labelled_images"] == 20
    assert other["accuracy"] != accuracy
    assert (folder / "squares-segmentation-0.5-f5.json").exists()


@pytest.mark.long
def test_what_is_measured_does_not_depend_on_a_stop(run, tmp_path, monkeypatch):
    """Features that are on the disk already are not computed again."""
    from amdim_tf.evaluation.protocols import segmentation

    data = masked_set(tmp_path)
    monkeypatch.setattr(segmentation, "BATCH", 16)
    expected = measure(run, data, features="f5")["accuracy"]
    (run / "evaluation/squares-segmentation-f5.json").unlink()
    write, written = segmentation.Kept.write, []

    def stop(kept, place, rows):
        if len(written) == 2:
            kept.finish(place)
            raise KeyboardInterrupt
        written.append(place)
        write(kept, place, rows)

    monkeypatch.setattr(segmentation.Kept, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(run, data, features="f5")
    again = []
    monkeypatch.setattr(
        segmentation.Kept,
        "write",
        lambda kept, place, rows: again.append(place) or write(kept, place, rows),
    )
    assert measure(run, data, features="f5")["accuracy"] == expected
    assert again[0] == 2 * 16 * 25


@pytest.mark.long
def test_a_mask_of_another_size_is_a_bad_image(run, tmp_path, capsys):
    result = measure(run, masked_set(tmp_path, broken=True), 0.1, features="f7")
    assert "Skipped a bad image" in capsys.readouterr().err
    assert result["accuracy"]["mean_iou"] > 0.5


def test_refused(run, tmp_path):
    data = masked_set(tmp_path, masks=False)
    with pytest.raises(InputError, match="needs a data set of TFDS with masks"):
        measure(run, data)
    config = evaluation_config(run, "squares")
    with pytest.raises(InputError, match="knn classifies f1, not maps. Received: features=f7"):
        evaluate(run, config, ("knn",), data, features="f7")
    with pytest.raises(InputError, match="features must be one of f1, f5, f7"):
        evaluate(run, config, ("segmentation",), data, features="f9")


def test_cells_lie_around_the_centres_of_receptive_fields():
    encoder = Encoder(32, 4, 32, 1)
    for n in (5, 7):
        start, size, stride = encoder.receptive_field(n)
        centres = start + size / 2 + np.arange(n) * stride
        pixels = np.arange(32) + 0.5
        lines = Cells.of(encoder, n).lines()
        distances = np.abs(pixels[:, None] - centres)
        chosen = np.take_along_axis(distances, lines[:, None], 1)[:, 0]
        np.testing.assert_allclose(chosen, distances.min(1))


def test_pixels_are_counted():
    mask = np.random.default_rng(0).integers(0, 4, (12, 12)).astype("uint8")
    mask[0, 0] = 255
    counts = Cells(12, 3, 0, 4).count(tf.constant(mask)).numpy()
    assert counts.shape == (9, 256) and counts.sum() == 144 and counts[0, 255] == 1
    for i in range(3):
        for j in range(3):
            block = mask[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
            np.testing.assert_array_equal(
                counts[3 * i + j], np.bincount(block.ravel(), minlength=256)
            )


@pytest.mark.parametrize("shape", [(40, 40), (64, 33), (33, 90), (300, 200)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_a_mask_is_cut_as_its_image_is(shape, size):
    """A smooth mask is where the same image is, to about a pixel."""
    height, width = shape
    ramp = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 130, width))
    image = np.repeat(ramp[None, ..., None], 3, -1).astype("float32")
    expected = views.center(image, size)[0, ..., 0].numpy()
    found = views.central_mask(tf.constant(ramp), size).numpy()
    step = 250 / min(shape)
    np.testing.assert_allclose(found, expected, atol=1.5 * step)


def test_intersection_over_union_by_hand():
    regions = Regions()
    # (predicted, pixels of 7, pixels of 9) of each cell of two images
    for cells in ([(4, 5, 2), (9, 1, 4)], [(7, 2, 0), (9, 0, 1), (9, 1, 0)]):
        predicted, of_7, of_9 = np.transpose(cells)
        counts = np.zeros((len(cells), 256), "int32")
        counts[:, 7], counts[:, 9] = of_7, of_9
        regions.add(counts, predicted)
    report, confusion = regions.report(["not", "these"])
    # Values 4 (predicted alone), 7 and 9; of the pixels of 7 two are right, of those of 9 five.
    assert report["per_class"] == {"4": 0.0, "7": round(2 / 9, 4), "9": round(5 / 9, 4)}
    assert report["mean_iou"] == pytest.approx(7 / 27)
    assert report["pixels"] == pytest.approx(7 / 16)
    assert confusion.tolist() == [[0, 0, 0], [5, 2, 2], [2, 0, 5]] and regions.images == 2
    low, high = report["interval"]
    assert 0 <= low <= report["mean_iou"] <= high <= 1
    json.dumps(report)


def test_the_interval_is_that_of_the_usual_bootstrap():
    """By counting images at random, none is kept; the interval is the same, but for chance."""
    generator = np.random.default_rng(1)
    regions, confusions = Regions(), []
    for _ in range(200):
        counts = generator.integers(0, 20, (9, 2))
        predicted = np.where(generator.uniform(size=9) < generator.uniform(), counts.argmax(1), 0)
        regions.add(np.pad(counts, ((0, 0), (0, 254))), predicted)
        confusions.append([[counts[predicted == j, i].sum() for j in (0, 1)] for i in (0, 1)])
    confusions, means = np.array(confusions), []
    for drawn in generator.integers(0, 200, (1000, 200)):
        shared, union = overlap(confusions[drawn].sum(0))
        means.append((shared / union).mean())
    expected = np.quantile(means, (0.025, 0.975))
    found = regions.report(())[0]["interval"]
    np.testing.assert_allclose(found, expected, atol=0.15 * np.diff(expected)[0])
