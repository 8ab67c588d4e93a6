"""What the pictures show, and that they can be read."""

import itertools
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import tensorflow as tf
from every_objective import NAMES, config_of, learner
from google.protobuf import text_format
from long import most_long
from tensorboard.plugins import projector

from amdim_tf.config import load_config
from amdim_tf.data import sources
from amdim_tf.errors import InputError
from amdim_tf.evaluation import maps, pictures
from amdim_tf.evaluation.evaluation import draw_confusion
from amdim_tf.evaluation.visualization import visualize
from amdim_tf.runs.training import train
from amdim_tf.training.run_files import read_class_names

GENERATOR = np.random.default_rng(0)


def halves(flat):
    """A posterior (1,2,7,7) that is one-hot by `flat` (7,7) of components."""
    return np.stack([flat == 0, flat == 1])[None].astype("float32")


def test_separation():
    left = np.broadcast_to(np.arange(7) < 3, (7, 7)).astype(int)
    assert maps.separation(halves(left)) == maps.separation(halves(1 - left)) == 1
    assert maps.separation(halves(left.T)) == pytest.approx((3 * 3 + 4 * 3) / 42)
    assert maps.separation(np.ones((1, 1, 7, 7))) == 0.5
    mostly = left.copy()
    mostly[0, 0] = 0  # one of 42 is in the other half; the middle column does not count
    mostly[:, 3] = 1
    assert maps.separation(halves(mostly)) == pytest.approx(41 / 42)


def test_neighbours_and_scores():
    f1 = np.array([[1, 0], [0, 1], [2, 0.1], [1, 0.5]], "float32")
    places, cosines = maps.neighbours(f1, 2)
    assert places[0].tolist() == [2, 3]
    assert cosines[0] == pytest.approx([0.9988, 0.8944], abs=1e-4)
    assert maps.same_class(f1, np.array([0, 1, 0, 1]), 1) == pytest.approx(0.75)
    locations = GENERATOR.normal(size=(2, 5, 5, 2)).astype("float32")
    expected = np.einsum("nd,nijd->nij", f1[:2], locations) / np.sqrt(2)
    np.testing.assert_allclose(maps.matching(f1[:2], locations), expected, rtol=1e-5)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run of pairs, its report, and the figures before they were closed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = load_config("photo_pairs")
    config.update({"ndf": 4, "nrkhs": 16, "ndepth": 1, "batch_size": 16, "steps": 20})
    config.update({"log_every": 5, "probe_images": 100, "pictures_every": 1})
    train(config, path, baselines=False)
    figures = {}
    save = pictures.save

    def keep(figure, path):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plt, "close", lambda _: None)
            save(figure, path)
        figures[path.name] = figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save", keep)
        report = visualize(path, config, count=70, projector=True)
    yield path, report, figures
    plt.close("all")


@pytest.mark.long
def test_pictures_can_be_read(drawn):
    path, _, figures = drawn
    panels = {
        "retrieval": 4 * 16,
        "views": 5 * 5,
        "segmentation": 5 * 7,
        "map": 1,
        "curves": 5,
    }  # no epoch ended
    assert set(figures) == set(panels)
    for name, figure in figures.items():
        picture = tf.io.decode_png((path / "pictures" / f"{name}.png").read_bytes()).numpy()
        height, width, _ = picture.shape
        assert 400 <= height <= 2000 and 700 <= width <= 2400, (name, picture.shape)
        assert (path / "pictures" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        axes = [each for each in figure.axes if each.get_label() != "<colorbar>"]
        assert len(axes) == panels[name]
        for each in axes:
            drawn_there = [*each.images, *each.lines]
            assert drawn_there and (each.lines or np.std(each.images[0].get_array()) > 0), name
        check_texts(figure, name)


def test_curves_of_a_loss_without_tasks():
    line = {"loss": 1.0, "bound": 0.5, "pretext_accuracy": 0.1, "linear_loss": 2.0}
    figure = pictures.curves([line | {"step": step} for step in (1, 2)])
    titles = ["loss", "bound on the mutual information", "accuracy"]
    assert [axes.get_title() for axes in figure.axes] == titles
    assert all(len(axes.lines) == 1 for axes in figure.axes)
    (axes,) = pictures.curves([{"step": 1, "bound_of_mine": 0.5}]).axes
    assert axes.get_legend_handles_labels()[1] == ["of mine"]
    plt.close("all")


@pytest.mark.long
def test_pictures_while_training(drawn):
    path, *_ = drawn
    (events,) = (path / "pictures").glob("events.*")
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            found[value.tag, event.step] = tf.io.decode_png(value.tensor.string_val[2])
    assert set(found) == {(name, 20) for name in ("retrieval", "views", "segmentation", "map")}
    assert all(np.std(picture[..., :3]) > 10 for picture in found.values())


def check_texts(figure, name):
    """No text lies on another or outside of the picture, and none is tiny."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [text for each in figure.axes for text in (each.title, each.xaxis.label)]
    texts += [figure._suptitle] if figure._suptitle else []
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    texts = [text for text in texts if text.get_text()]
    assert texts, name
    boxes = [text.get_window_extent(renderer) for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert text.get_fontsize() >= 7, (name, text)
        assert 0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, (name, text)
    for (a, first), (b, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not first.overlaps(second), (name, a, b)


@pytest.mark.parametrize("name", most_long((*NAMES, "small crops"), 3))
def test_any_number_of_views_has_pictures(name):
    config = config_of(name, **{"views.small_crops": int(name == "small crops")})
    data, model = sources.load(config), learner(config, "float32", classes=0)
    shown = pictures.choose(data, config, pictures.LEAST)
    assert shown.x1.shape == shown.x2.shape and (shown.x1 != shown.x2).any()
    found = {title for title, _ in pictures.draw(model, config, shown, data.class_names)}
    plt.close("all")
    of_maps = {"views"} if name in ("jsd", "dv", "small crops") else set()
    assert found == {"retrieval", "map"} | of_maps


@pytest.mark.long
def test_the_report(drawn):
    path, report, _ = drawn
    assert json.loads((path / "pictures" / "report.json").read_text()) == report
    assert report["step"] == 20 and report["images"] == 70
    for found in (report["trained"], report["untrained"]):
        assert 0 < found["same_class"] < 1
        low, high = found["interval"]
        assert low <= found["difference"] <= high
        assert 0.5 <= found["top_bottom"] <= 1 and 0.5 <= found["left_right"] <= 1


@pytest.mark.long
def test_the_projector_of_tensorboard(drawn):
    """It finds features, names and thumbnails of the same images."""
    path, *_ = drawn
    text = (path / "tensorboard" / "projector_config.pbtxt").read_text()
    (shown,) = text_format.Parse(text, projector.ProjectorConfig()).embeddings
    files = {
        name: path / "tensorboard" / each
        for name, each in (
            ("f1", shown.tensor_path),
            ("classes", shown.metadata_path),
            ("thumbnails", shown.sprite.image_path),
        )
    }
    f1 = np.loadtxt(files["f1"], delimiter="\t")
    lines = files["classes"].read_text().splitlines()
    assert f1.shape == (70, 16) and len(lines) == 71 and lines[0] == "image\tclass"
    assert {line.split("\t")[1] for line in lines[1:]} <= set(read_class_names(path))
    picture = tf.io.decode_png(files["thumbnails"].read_bytes()).numpy()
    side, _ = shown.sprite.single_image_dim
    assert side == 32 and picture.shape == (9 * side, 9 * side, 3)
    tiles = picture.reshape(9, side, 9, side, 3).std((1, 3)).reshape(81, 3)
    assert (tiles[:70] > 0).any(1).all() and not tiles[70:].any()


@pytest.mark.long
def test_what_cannot_be_shown_is_refused(drawn):
    path, *_ = drawn
    config = load_config("photo_pairs")
    with pytest.raises(InputError, match="at least 16 images. Received: images=3, of 840"):
        visualize(path, config, count=3)


@pytest.mark.filterwarnings("error")
def test_names_of_classes_are_shown_as_they_are(tmp_path):
    names = ("US$", "$x^2_", "a$b$c", "_^", "$$", "{\\frac", "caf\\xe9")
    labels = np.arange(49) % len(names)
    images = GENERATOR.random((49, 8, 8, 3))
    figure = pictures.feature_map(images, GENERATOR.normal(size=(49, 3)), labels, names)
    pictures.save(figure, tmp_path / "map")
    (legend,) = figure.legends
    assert [text.get_text().strip("\u200b").replace(r"\$", "$") for text in legend.texts] == [
        *names
    ]
    assert not any(text._preprocess_math(text.get_text())[1] is True for text in legend.texts)
    confusion = np.eye(len(names), dtype=int)
    draw_confusion(confusion, names, "names", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
