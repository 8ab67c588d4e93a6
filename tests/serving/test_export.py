"""Exports: what they answer, what is refused before a server sees it, and what a crash leaves."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from golden_values import TESTS
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from amdim_tf.config import load_config
from amdim_tf.data.decoding import MAX_PIXELS
from amdim_tf.data.preprocess import some
from amdim_tf.data.views import center, normalize
from amdim_tf.errors import InputError
from amdim_tf.serving import saved_model, self_check
from amdim_tf.serving.saved_model import export
from amdim_tf.serving.self_check import ExportError, serve
from amdim_tf.training.building import build_model
from amdim_tf.training.run_directory import METADATA

CLASSES = ("cat", "dog", "bird")
GENERATOR = np.random.default_rng(0)
ALONE = {"encoded": "bytes"}


def small_config():
    config = load_config("stl10")
    config.update({"ndf": 8, "nrkhs": 64, "ndepth": 1})
    return config


def random_images(*shape):
    return GENERATOR.integers(0, 256, (*shape, 3), "uint8")


def encode(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its config and an export of it."""
    config = small_config()
    model = build_model(config, len(CLASSES))
    folder = tmp_path_factory.mktemp("export")
    target = export(model, config, folder, class_names=CLASSES)
    assert target == folder / "1" and [path.name for path in folder.iterdir()] == ["1"]
    return model, config, target


def f1_of(model, config, images):
    prepared = normalize(center(images, config.image_size), config.mean, config.std)
    return model.encoder(prepared)["f1"]


def test_signatures_give_what_the_model_gives(exported):
    model, config, folder = exported
    served = tf.saved_model.load(str(folder)).signatures
    assert set(served) == {"serving_default", "encoded", "normalized", "classify"}
    for shape in ((64, 64), (100, 80), (1, 300)):
        images = random_images(3, *shape)
        outputs = served["serving_default"](images=tf.constant(images))
        assert set(outputs) == {"f1"}
        expected = f1_of(model, config, images)
        np.testing.assert_allclose(outputs["f1"], expected, atol=1e-5)
        logits = model.probes(expected)
        outputs = served["classify"](images=tf.constant(images))
        assert set(outputs) == {"linear_logits", "mlp_logits", "linear_probabilities", "classes"}
        for name in ("linear", "mlp"):
            np.testing.assert_allclose(outputs[f"{name}_logits"], logits[name], atol=1e-5)
        np.testing.assert_allclose(np.sum(outputs["linear_probabilities"], -1), 1, rtol=1e-5)
        best = np.argmax(logits["linear"], -1)
        assert [name.decode() for name in outputs["classes"].numpy()] == [CLASSES[i] for i in best]

    normalised = GENERATOR.normal(size=(2, 64, 64, 3)).astype("float32")
    outputs = served["normalized"](images=tf.constant(normalised))
    embeddings = model.embed(normalised)
    for n in (1, 5, 7):
        np.testing.assert_allclose(outputs[f"r{n}"], embeddings[n], atol=1e-5)
    for name, value in model.encoder(normalised).items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-5)


def test_files_of_every_kind_are_decoded(exported):
    model, config, folder = exported
    encoded = tf.saved_model.load(str(folder)).signatures["encoded"]
    pixels = random_images(70, 90)
    gray = Image.fromarray(pixels).convert("L")
    moving, colours = io.BytesIO(), Image.fromarray(pixels).quantize(16)
    colours.save(moving, "GIF", save_all=True, append_images=[colours.rotate(90)])
    files = [encode(pixels, kind) for kind in ("JPEG", "PNG", "GIF", "BMP")]
    files += [moving.getvalue(), encode(np.asarray(gray), "PNG"), encode(pixels, "WEBP")]
    upright = [tf.io.decode_image(file, 3, expand_animations=False) for file in files]
    turned, exif, few = io.BytesIO(), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(turned, "JPEG", exif=exif)
    colours.save(few, "BMP")
    files += [turned.getvalue(), few.getvalue()]
    upright += [np.rot90(upright[0], -1), np.asarray(colours.convert("RGB"))]
    outputs = encoded(bytes=tf.constant(files))["f1"]
    for decoded, output in zip(upright, outputs, strict=True):
        decoded = np.asarray(decoded)[None]
        np.testing.assert_allclose(output[None], f1_of(model, config, decoded), atol=1e-5)
    np.testing.assert_allclose(outputs[1], outputs[3], atol=1e-5)  # neither loses anything


def malformed_requests():
    """150 wrong inputs of `encoded` and 150 of `serving_default`."""
    jpeg, png, bmp = (encode(random_images(70, 90), kind) for kind in ("JPEG", "PNG", "BMP"))
    truncated = [file[: len(file) * i // 34] for file in (jpeg, png, bmp) for i in range(34)]
    # A header that promises 60,000 x 60,000 pixels.
    huge = bytearray(png)
    huge[16:24] = 2 * (60_000).to_bytes(4, "big")
    texts = [b"", b"GIF89a", b"BM", b"\x89PNG", b"<svg/>", bytes(huge), b"\xff\xd8\xff", 99 * b"\0"]
    texts += [GENERATOR.bytes(int(GENERATOR.integers(1, 999))) for _ in range(30)]
    of_encoded = [np.array([text], object) for text in truncated + texts]
    of_encoded += [np.array([png, text], object) for text in texts[:6]]
    shapes = [(0,), (), (1, 1), (2, 1, 1)]
    of_encoded += [np.full(shape, png, object) for shape in shapes]

    of_default = [np.zeros(GENERATOR.integers(1, 9, rank), "uint8") for rank in (0, 1, 2, 3, 5, 6)]
    of_default += [np.zeros((2, 70, 70, channels), "uint8") for channels in (0, 1, 2, 4, 5)]
    of_default += [np.zeros((0, side, side, 3), "uint8") for side in range(1, 60)]
    of_default += [np.zeros((1, 0, side, 3), "uint8") for side in range(30)]
    of_default += [np.zeros((1, side, 0, 3), "uint8") for side in range(1, 30)]
    of_default += [np.zeros((1, 1, MAX_PIXELS + 1, 3), "uint8")]
    kinds = ("float32", "int32", "int64", "bool")
    of_default += [
        np.zeros((1, side, 70, 3), kind) for kind in kinds for side in (70, 71, 72, 73, 74)
    ]
    return [("encoded", x) for x in of_encoded] + [("serving_default", x) for x in of_default]


def test_malformed_requests_do_no_harm(exported):
    model, config, folder = exported
    requests = malformed_requests()
    counts = [sum(name == ours for ours, _ in requests) for name in ("encoded", "serving_default")]
    assert counts == [150, 150]
    signatures = self_check.read_graph(folder).signature_def
    pixels = random_images(2, 70, 90)
    good = {
        "encoded": np.array([encode(image, "PNG") for image in pixels], object),
        "serving_default": pixels,
    }
    calls = []
    for name, array in requests:
        key = ALONE.get(name, "images")
        calls += [self_check.call(signatures[name], {key: x}) for x in (array, good[name])]
    answers = serve(folder, calls)
    expected = f1_of(model, config, pixels)
    for (name, array), error, answer in zip(requests, answers[::2], answers[1::2], strict=True):
        assert isinstance(error, str), (name, array.shape, array[:1])
        assert len(error) > 20
        np.testing.assert_allclose(answer[0], expected, atol=1e-5)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_images_that_are_not_finite_have_no_features(number, exported):
    _, config, folder = exported
    images = np.zeros((2, config.image_size, config.image_size, 3), "float32")
    images[1, 3, 4, 0] = number
    (error,) = serve(folder, [call_of(folder, "normalized", images)])
    assert "images must be of finite numbers" in error


def call_of(folder, name, images):
    signature = self_check.read_graph(folder).signature_def[name]
    return self_check.call(signature, {"images": images})


def test_a_version_carries_what_a_server_and_people_need(exported):
    model, config, folder = exported
    records = tf.data.TFRecordDataset(str(folder / self_check.WARMUP)).as_numpy_iterator()
    names = [
        prediction_log_pb2.PredictionLog.FromString(x).predict_log.request.model_spec.signature_name
        for x in records
    ]
    assert names == ["serving_default", "encoded", "normalized", "classify"]
    assert "max_batch_size { value: 64 }" in (folder / "batching_params.pbtxt").read_text()
    card = (folder / "MODEL_CARD.md").read_text()
    for text in ("stl10", "`f7` float32 (N,7,7,64)", str(tuple(config.mean)), "3 classes", "nrkhs"):
        assert text in card
    assert json.loads((folder / METADATA).read_text())["class_names"] == list(CLASSES)


@pytest.mark.long
def test_versions_count_up_and_stay(exported, tmp_path):
    model, config, _ = exported
    target = export(model, config, tmp_path, version=7)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert "classify" not in self_check.read_graph(target).signature_def
    with pytest.raises(InputError, match="version must be a new one"):
        export(model, config, tmp_path, version=7)
    (tmp_path / ".unfinished.8").mkdir()  # of one that was killed
    (tmp_path / ".unfinished.8" / "rest").write_text("")
    assert export(model, config, tmp_path, class_names=CLASSES).name == "8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "8"]
    assert not (tmp_path / "8" / "rest").exists()
    assert all(path.read_bytes() == content for path, content in before.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output cannot be used: .*Received: output="):
        export(model, config, tmp_path / "file")


@pytest.mark.long
def test_half_the_bytes_in_bfloat16(exported, tmp_path):
    model, config, folder = exported
    small = build_model(config, len(CLASSES), "bfloat16")
    for variable, value in zip(small.variables, model.variables, strict=True):
        variable.assign(value)
    target = export(small, config, tmp_path, class_names=CLASSES)
    images = tf.constant(random_images(4, 70, 90))
    ours, exact = (
        tf.saved_model.load(str(path)).signatures["serving_default"](images=images)["f1"]
        for path in (target, folder)
    )
    assert ours.dtype == tf.float32
    error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.03
    sizes = [
        (path / "variables" / "variables.data-00000-of-00001").stat().st_size
        for path in (target, folder)
    ]
    classifiers = 4 * model.probes.count_params()
    assert sizes[0] - classifiers < 0.6 * (sizes[1] - classifiers)


@pytest.mark.long
def test_one_compiled_for_python_is_none_for_servers(exported, tmp_path):
    model, config, _ = exported
    target = export(model, config, tmp_path, 3, CLASSES, compiled=True)
    assert target.name == "python-xla-3"
    assert "for Python alone" in (target / "MODEL_CARD.md").read_text()
    with pytest.raises(ExportError, match="XLA"):
        self_check.check_operations(self_check.read_graph(target))


class Flawed:
    """An export with one flaw, and what `self_check.check` needs to find it."""

    def __init__(self, folder):
        self.folder, self.module = folder, tf.Module()
        self.module.kernel = tf.Variable(GENERATOR.normal(size=(3, 3, 3, 2)).astype("float32"))
        self.warmup = "images"

    def answer(self, images):
        return self.convolve(tf.ensure_shape(images, (None, 8, 8, 3)))

    def convolve(self, images):
        f = tf.nn.conv2d(some(images), self.module.kernel, 1, "VALID")
        return {"f1": tf.reduce_sum(f, [1, 2])}

    def check(self):
        spec = tf.TensorSpec((None, 8, 8, 3), tf.float32, "images")
        signature = tf.function(lambda images: self.answer(images), [spec], autograph=False)
        tf.saved_model.save(self.module, str(self.folder), {"serving_default": signature})
        images = GENERATOR.normal(size=(2, 8, 8, 3)).astype("float32")
        outputs = {name: np.asarray(x) for name, x in self.answer(images).items()}
        (self.folder / "assets.extra").mkdir()
        warmup = {"serving_default": ({self.warmup: images}, outputs)}
        saved_model.write_warmup(warmup, self.folder / self_check.WARMUP)
        examples = {"serving_default": ({"images": images}, outputs)}
        self_check.check(self.folder, examples, self.module.kernel.numpy().size)


def test_the_self_check_passes_what_has_no_flaw(tmp_path):
    Flawed(tmp_path).check()


def compiled_region(flawed):
    flawed.answer = tf.function(flawed.answer, jit_compile=True)


def python_operation(flawed):
    answer = flawed.answer
    flawed.answer = lambda images: answer(
        tf.ensure_shape(tf.py_function(lambda x: x, [images], tf.float32), (None, 8, 8, 3))
    )


def unguarded_shape(flawed):
    flawed.answer = flawed.convolve


def doubled_weight(flawed):
    flawed.module.copy = tf.Variable(flawed.module.kernel)


def scalar_output(flawed):
    answer = flawed.answer
    flawed.answer = lambda images: answer(images) | {"size": tf.size(images)}


def wrong_warmup(flawed):
    flawed.warmup = "image"


def wrong_values(flawed):
    answer, calls = flawed.answer, []

    def other_when_traced(images):
        calls.append(0)
        return {"f1": answer(images)["f1"] * (1 + 1e-4 * len(calls))}

    flawed.answer = other_when_traced


@pytest.mark.parametrize(
    "flaw, message",
    [
        (compiled_region, "XLA"),
        (python_operation, "runs Python"),
        (unguarded_shape, "Signature serving_default answers|would end with code"),
        (doubled_weight, "108 numbers are stored, 54"),
        (scalar_output, "size of signature serving_default must have a batch axis"),
        (wrong_warmup, "warm-up request asks signature serving_default for image;"),
        (wrong_values, "f1 of signature serving_default is not what the model gives"),
    ],
)
def test_the_self_check_refuses(tmp_path, flaw, message):
    flawed = Flawed(tmp_path)
    flaw(flawed)
    with pytest.raises(ExportError, match=message):
        flawed.check()


def test_nothing_is_published_that_fails_its_check(exported, tmp_path, monkeypatch):
    model, config, _ = exported
    monkeypatch.setattr(saved_model, "batching_parameters", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(model, config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished.1"]


@pytest.mark.long
def test_killed_at_any_instant_an_export_is_whole_or_absent(exported, tmp_path):
    model, _, folder = exported
    script = TESTS / "kill_exports.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path, "20"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    versions = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(versions) == 1 + outcome["finished"] and outcome["unfinished"] > 0
    assert outcome["finished"] + outcome["killed"] == 20
    expected = {path.relative_to(folder) for path in folder.rglob("*")}
    for version in versions:
        assert {path.relative_to(version) for path in version.rglob("*")} == expected
        assert tf.saved_model.load(str(version)).signatures["classify"]
