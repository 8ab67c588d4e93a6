"""Every row of the paper's tables: training, evaluation, sweep and the table of results.

The commands' functions run on the real images next to the checkout where those are, else on made
ones in the same layout.
"""

import copy
import json
import re
import subprocess
import sys

import imagenet_data
import numpy as np
import pytest
import tensorflow as tf
from golden_values import GOLDEN, ROOT
from long import most_long

from amdim_tf.config import apply_variant, config_module, fields, known_configs, load_config
from amdim_tf.errors import InputError
from amdim_tf.evaluation import features
from amdim_tf.evaluation.evaluation import evaluate
from amdim_tf.evaluation.results import results_table
from amdim_tf.evaluation.rows import COLUMNS
from amdim_tf.runs.sweep import sweep, sweep_table
from amdim_tf.runs.training import train
from amdim_tf.training.run_files import evaluation_config
from amdim_tf.variants import PAPER, RECIPE, VARIANTS, WITHOUT

SMALL = {
    "ndf": 2,
    "nrkhs": 16,
    "ndepth": 1,
    "batch_size": 16,
    "steps": 2,
    "probe_images": 100,
    "probe_epochs": 1,
}
REAL_DATA = ROOT.parent / "shared" / "data"


def small(dataset="photo_patches", **changed):
    config = load_config(dataset, "tiny")
    config.update(SMALL | changed)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the photographs, neither measured nor exported."""
    path = tmp_path_factory.mktemp("runs") / "photographs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amdim_tf.runs.training.wanted", lambda *_: ())
        patch.setattr("amdim_tf.runs.finish.export", lambda *_: None)
        train(small(steps=20, ndf=4, learning_rate=1e-3), path)
    return path


@pytest.mark.long
@pytest.mark.parametrize(
    "dataset, splits",
    [
        ("stl10", {"probe_split": "train[:200]", "test_split": "test[:100]"}),
        ("imagenet2012", {"train_split": "train[:100]", "test_split": "validation[:50]"}),
        ("image_folder", {}),
    ],
)
def test_from_training_to_evaluation_and_export(dataset, splits, tmp_path):
    config = small(dataset, **splits)
    if REAL_DATA.is_dir():
        folder = REAL_DATA / ("image_folder" if dataset == "image_folder" else "tfds")
        measure(config, tmp_path / "run", str(folder))
    elif dataset == "image_folder":
        drawn_folder(tmp_path / "images")
        measure(config, tmp_path / "run", str(tmp_path / "images"))
    else:
        side = {"stl10": 96, "imagenet2012": 128}.get(dataset, 32)
        counts = dict.fromkeys(["train", "test", "unlabelled", "validation"], 200)
        imagenet_data.make(tmp_path, dataset, counts, {}, 10, (side, side))
        measure(config, tmp_path / "run", str(tmp_path))


def measure(config, path, data_dir):
    mixture = config.dataset == "stl10"
    config.mixture_components = 2 * mixture
    result = train(config, path, data_dir, baselines=False)
    assert result["accuracy"]["frozen"]["knn"] <= 1 and result["train_images"] >= 100
    assert (path / "export" / "1" / "saved_model.pb").exists()
    chosen = ("knn", "linear")
    features = "mixture" if mixture else "f1"
    evaluated = evaluation_config(str(path))
    results = evaluate(path, evaluated, chosen, data_dir, fast=True, features=features)
    for protocol in chosen:
        name = f"{config.dataset}-{protocol}" + "-fast" * (protocol != "knn") + "-mixture" * mixture
        written = json.loads((path / "evaluation" / f"{name}.json").read_text())
        assert written == results[protocol]
        assert written["accuracy"]["top1"] <= written["accuracy"]["top5"] <= 1
        picture = tf.io.decode_png((path / "evaluation" / f"{name}.png").read_bytes())
        assert picture.shape == (700, 800, 4) and np.std(picture[..., :3]) > 5
    assert config.dataset in results_table(path.parent)


def drawn_folder(path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 30)):
        for i, name in enumerate(("bright", "dark")):
            for j in range(count):
                image = generator.integers(128 * i, 128 * i + 128, (140, 150, 3)).astype("uint8")
                file = path / split / name / f"{j}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                tf.io.write_file(str(file), tf.io.encode_jpeg(image))


@pytest.mark.long
def test_features_are_computed_once_for_all_fast_protocols(run, monkeypatch):
    collected, collect = [], features._collect

    def count(*arguments):
        values, labels = collect(*arguments)
        collected.append(len(labels))
        return values, labels

    monkeypatch.setattr(features, "_collect", count)
    evaluate(run, evaluation_config(str(run)), ("knn", "linear", "mlp"), fast=True)
    assert collected == [4139, 840]


@pytest.mark.long
def test_classifiers_on_views_and_fine_tuning(run):
    config = evaluation_config(str(run))
    config.probe_epochs, config.probe_learning_rate = 6, 3e-3
    weights = {path: path.read_bytes() for path in (run / "checkpoints").glob("*/*")}
    results = evaluate(run, config, ("linear", "mlp", "finetune"), label_fraction=0.5)
    for protocol, result in results.items():
        assert result["labelled_images"] == 14 * int(0.5 * 4139 / 14)
        assert result["accuracy"]["top1"] > 2 / 14, protocol  # twice chance
        assert (run / "evaluation" / f"photo_patches-{protocol}-0.5.json").exists()
    assert weights and weights == {
        path: path.read_bytes() for path in (run / "checkpoints").glob("*/*")
    }


@pytest.mark.long
def test_transfer_to_other_images_than_the_encoders(run, tmp_path):
    drawn_folder(tmp_path)
    config = evaluation_config(str(run), "image_folder")
    assert (config.image_size, config.mean) == (32, (0.5, 0.5, 0.5))
    results = evaluate(run, config, ("knn",), str(tmp_path))
    assert results["knn"]["accuracy"]["top1"] == 1  # bright and dark
    assert set(results["knn"]["accuracy"]["per_class"]) == {"bright", "dark"}


@pytest.mark.long
def test_an_encoder_from_images_without_classes(tmp_path):
    drawn_folder(tmp_path / "drawn")
    (tmp_path / "images").mkdir()
    (tmp_path / "drawn" / "train" / "dark").rename(tmp_path / "images" / "train")
    config = small("image_folder")
    result = train(config, tmp_path / "run", str(tmp_path / "images"))
    assert result["accuracy"] == {} and result["train_images"] == 60
    assert (tmp_path / "run" / "export" / "1" / "saved_model.pb").exists()
    with pytest.raises(InputError, match="two or more classes. Received: image_folder with 0"):
        config = evaluation_config(str(tmp_path / "run"))
        evaluate(tmp_path / "run", config, data_dir=str(tmp_path / "images"))
    with pytest.raises(InputError, match="images need classes. Received: image_folder without"):
        sweep(config, ["-stabilize"], [0], tmp_path, str(tmp_path / "images"))
    with pytest.raises(InputError, match="objective supervised needs classes"):
        config = apply_variant(small("image_folder"), "supervised")
        train(config, tmp_path / "other", str(tmp_path / "images"))


@pytest.mark.long
def test_supervised_training(tmp_path):
    config = apply_variant(small(steps=60, ndf=4, learning_rate=1e-3), "supervised")
    accuracy = train(config, tmp_path, baselines=False)["accuracy"]["beside"]
    assert accuracy["linear"] > 2 / 14 and accuracy["mlp"] > 4 / 14
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert "linear_loss" in lines[0] and "loss" not in lines[0]


def test_the_configs_have_every_figure_of_the_papers_tables():
    """And no other. A row has one figure, the linear classifier's, or two, with the MLP's."""
    expected = {}
    tables = json.loads((GOLDEN / "paper_tables.json").read_text())
    for number in (1, 2, 3):
        for row, found in tables[f"table_{number}"]["rows"].items():
            for dataset, figures in found.items():
                dataset = {"imagenet": "imagenet2012"}.get(dataset, dataset)
                expected[dataset, number, row] = np.ravel(figures).tolist()
    for row, found in tables["table_1"]["mlp"].items():
        expected["imagenet2012", 1, row].append(found["imagenet"])
    configs = {}
    for dataset in known_configs():
        for (number, row), own in getattr(config_module(dataset), "PAPER", {}).items():
            configs[dataset, number, row] = [own[key] for key in ("linear", "mlp") if key in own]
            if "size" in own:
                load_config(dataset, own["size"], own.get("variant", ""))
    assert configs == expected


@pytest.mark.parametrize("dataset", known_configs())
def test_variants_change_what_they_name(dataset):
    plain = load_config(dataset)
    for name in (*PAPER, "+recipe"):
        config = load_config(dataset, variant=name)
        changed = {
            field for field, value in fields(config).items() if value != fields(plain)[field]
        }
        # The embedded sets have no grey views to take away.
        assert changed <= {"variant", *VARIANTS[name]} and "variant" in changed
        if not dataset.startswith("photo_"):
            assert changed == {"variant", *VARIANTS[name]}
    for name in WITHOUT:
        config = load_config(dataset, variant=f"+recipe,{name}")
        rest = {field: x for field, x in RECIPE.items() if field not in WITHOUT[name]}
        assert fields(config).items() >= (rest | WITHOUT[name]).items()
    assert {field for each in WITHOUT.values() for field in each} == {*RECIPE}
    strong = load_config(dataset, variant="+strong_aug").views.autoaugment
    assert strong == ("cifar10" if plain.image_size == 32 else "imagenet")


@pytest.mark.long
def test_the_sweep_compares_each_variant_with_the_baseline(tmp_path):
    config = small(probe_images=300)
    accuracies = sweep(config, ["-stabilize"], [1], tmp_path)
    assert {name: values.shape for name, values in accuracies.items()} == {
        "baseline": (1, 3),
        "-stabilize": (1, 3),
    }
    again = sweep(copy.deepcopy(config), ["-stabilize"], [1], tmp_path)
    for name in accuracies:
        np.testing.assert_array_equal(accuracies[name], again[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "photo_patches-tiny--stabilize-seed1",
        "photo_patches-tiny-seed1",
    ]


def test_methods_are_compared_at_equal_images_seen(monkeypatch, tmp_path):
    steps = {}

    def train(config, workdir, *_, **__):
        steps[config.variant] = config.steps
        return {"accuracy": {"frozen": dict.fromkeys(COLUMNS, 0.5)}}

    monkeypatch.setattr("amdim_tf.runs.sweep.train", train)
    names = ["rotation", "exemplar", "jigsaw", "cpc", "cpc_3x3", "cmc", "supervised"]
    found = sweep(small(steps=40), names, [0], tmp_path, equal_images=True)
    # AMDIM sees two views of an image, rotation four copies of one, exemplar eight views.
    assert steps == {
        "": 40,
        "rotation": 20,
        "exemplar": 10,
        "jigsaw": 80,
        "cpc": 80,
        "cpc_3x3": 80,
        "cmc": 80,
        "supervised": 40,
    }
    table = sweep_table(found, table_1=True).splitlines()
    assert [row.split("|")[-2].strip() for row in table[2:]] == [
        "63.5, 68.1",
        "55.4",
        "46.0",
        "44.6",
        "48.7, 61.0",
        "48.7, 61.0",
        "60.1",
        "71.3",
    ]


def test_what_cannot_be_trained_is_found_before_anything_is(monkeypatch, tmp_path):
    monkeypatch.setattr("amdim_tf.runs.sweep.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="mixture_components.*objective='rotation'"):
        sweep(small(mixture_components=2), ["rotation"], [0], tmp_path)


def test_the_sweeps_table_by_hand():
    values = np.array([[0.60, 0.7, 0.5], [0.62, 0.7, 0.5], [0.61, 0.7, 0.5]])
    worse = values - [[0.1, 0.01, 0], [0.1, 0.02, 0.01], [0.1, -0.03, -0.01]]
    lines = sweep_table({"baseline": values, "-multiscale": worse}).splitlines()
    assert lines[2] == "| baseline | 61.0 | 70.0 | 50.0 |  |  |  |"
    # By pairs: 0.0 +- t(2) * 0.0265 / sqrt(3), t = 4.303; the seeds' own differences do not count.
    assert lines[3].startswith(
        "| -multiscale | 51.0 | 70.0 | 50.0 | -10.0 (-10.0 to -10.0)* | +0.0 (-6.6 to +6.6) "
    )
    assert lines[3].count("*") == 1


def test_the_table_of_results_names_the_papers_figures_and_what_differs(tmp_path):
    def write(name, encoder, protocol, top1, dataset=None, **other):
        path = tmp_path / name / "evaluation"
        path.mkdir(parents=True)
        config = fields(encoder)
        result = {
            "protocol": protocol,
            "fast": False,
            "label_fraction": 1.0,
            "labelled_images": 10,
            "accuracy": {"top1": top1, "interval": [top1 - 0.01, top1 + 0.01]},
            "config": config | {"dataset": dataset or config["dataset"]},
            "encoder": {"steps": 9, "train_images": 50000, "config": config},
        }
        (path / "a.json").write_text(json.dumps(result | other))

    small_cifar = load_config("cifar10", "small")
    for seed, top1 in enumerate((0.88, 0.90, 0.89)):
        small_cifar.seed = seed
        write(f"small{seed}", small_cifar, "linear", top1)
    shorter = load_config("cifar10", "large")
    shorter.epochs = 20
    fewer = {"fast": True, "label_fraction": 0.1, "labelled_images": 5000}
    write("large", shorter, "mlp", 0.8, **fewer)
    imagenet = load_config("imagenet2012", "large", "+strong_aug")
    imagenet.epochs = 150
    write("places", imagenet, "linear", 0.5, dataset="places205")
    for epochs in (50, 150):
        own = load_config("imagenet2012", "small", "+strong_aug")
        own.epochs = epochs
        write(f"epochs{epochs}", own, "linear", 0.5)

    large, small, places, *epochs_50_150 = results_table(tmp_path).splitlines()[2:]
    figures = [re.search(r"\| (\d+\.\d) \| 50000 training", row).group(1) for row in epochs_50_150]
    assert sorted(figures) == ["62.7", "63.5"]  # those of Table 3 and of Table 1
    assert small == "| cifar10 small | cifar10 | linear | 89.0 (86.5 to 91.5; 3 seeds) | 89.5 |  |"
    assert large.startswith(
        "| cifar10 large | cifar10 | mlp | 80.0 (79.0 to 81.0) | 93.1 | epochs 20;"
    )
    assert "without augmentation; 5000 labels |" in large
    assert places.startswith("| imagenet2012 large +strong_aug | places205 | linear | 50.0 (49.0")
    assert "| 55.0 | 50000 training images of 1281167 |" in places


def test_a_folder_without_evaluations_is_refused(tmp_path):
    with pytest.raises(InputError, match=f"has measured. Received: folder={tmp_path}"):
        results_table(tmp_path)


REFUSALS = {
    "no run": ("evaluate", ["--workdir=nowhere"], "workdir must be a run directory.*nowhere"),
    "no workdir": ("evaluate", [], "workdir must be a run directory.*Received: workdir=None"),
    "no checkpoint": ("evaluate", ["--workdir=empty"], "must hold a checkpoint.*workdir=empty"),
    "protocol": ("evaluate", ["--workdir=empty", "--protocol=svm"], "protocol.*knn"),
    "seeds": ("sweep", ["--seeds=one"], "seeds must be whole numbers.*one"),
    "method": ("sweep", ["--objectives=amdim,simclr"], "objectives must be some of.*amdim,simclr"),
}


@pytest.mark.parametrize("case", most_long(REFUSALS, 3))
def test_refusals_are_one_sentence(case, tmp_path):
    command, arguments, expected = REFUSALS[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps(fields(small())))
    done = subprocess.run(
        [sys.executable, "-m", f"amdim_tf.{command}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode not in (0, None) and "Traceback" not in done.stderr
    assert message.startswith("error: ")
    assert re.search(expected, message), message


@pytest.mark.long
def test_what_a_run_does_not_have_is_refused(run):
    with pytest.raises(InputError, match="must be one of f1, f5, f7 .* features=mixture"):
        evaluate(run, evaluation_config(str(run)), features="mixture")
    for fraction in (0.0, 1.5):
        with pytest.raises(InputError, match="label_fraction must lie in 0..1"):
            evaluate(run, evaluation_config(str(run)), label_fraction=fraction)


def test_parts_of_imagenet_have_imagenets_config():
    config = load_config("imagenet2012_subset/1pct", "small")
    assert (config.test_split, config.image_size) == ("validation", 128)
    assert config.dataset == "imagenet2012_subset/1pct"
