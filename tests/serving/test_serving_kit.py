"""The serving kit: clients, load generator, scripts and configs.

Clients ask the model server at `TFSERVING_GRPC` and `TFSERVING_REST` if these are set, one that
serves an export of this version; else a loopback double of a server, see `double.py`.
"""

import functools
import importlib
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from typing import NamedTuple

import double
import numpy as np
import pytest
import tensorflow as tf
import yaml
from golden_values import ROOT
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.config import model_server_config_pb2
from test_export import small_config

from amdim_tf.data.preprocess import Preprocess
from amdim_tf.files import write_json
from amdim_tf.serving.saved_model import batching_parameters, export
from amdim_tf.training.building import build_model
from amdim_tf.training.run_directory import environment

KIT = ROOT / "export"
sys.path.append(str(KIT))
client, load = (importlib.import_module(name) for name in ("client", "load"))

LABELS = {"stable": 1, "canary": 2}
NOWHERE = "127.0.0.1:1"
ASKED = "TFSERVING_GRPC" in os.environ or "TFSERVING_REST" in os.environ


class Server(NamedTuple):
    """Two addresses, and of the double, itself and what its versions 1 and 2 give for `FILES`."""

    grpc: str
    rest: str
    double: double.Double | None
    features: dict | None

    def embed_both(self, files, **version):
        """f1 by gRPC and by REST."""
        by_grpc = client.embed_grpc(self.grpc, files, **version)
        return by_grpc, client.embed_rest(self.rest, files, **version)

    def clients(self):
        """Both clients, as functions of files, by the names of the protocols."""
        return {
            "grpc": functools.partial(client.embed_grpc, self.grpc),
            "rest": functools.partial(client.embed_rest, self.rest),
        }

    def refuses(self, message, files, **version):
        """Both clients raise an error of one line."""
        for embed, address in ((client.embed_grpc, self.grpc), (client.embed_rest, self.rest)):
            with pytest.raises(client.ServingError, match=message) as caught:
                embed(address, files, **version)
            assert str(caught.value).startswith(address) and "\n" not in str(caught.value)


def image_file(kind, height, width):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), "uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


FILES = [image_file("PNG", 70, 90), image_file("JPEG", 100, 80), image_file("GIF", 64, 64)]
BROKEN = FILES[0][:2000]


# The two versions that the double serves take a while.
@pytest.fixture(scope="module", params=[pytest.param("", marks=() if ASKED else pytest.mark.long)])
def server(tmp_path_factory):
    if ASKED:
        yield Server(os.environ["TFSERVING_GRPC"], os.environ["TFSERVING_REST"], None, None)
        return
    folder, config = tmp_path_factory.mktemp("versions"), small_config()
    images = Preprocess(config.image_size, config.mean, config.std).decode(FILES)
    features = {}
    for version in LABELS.values():
        model = build_model(config, 0)
        export(model, config, folder, version)
        features[version] = model.features(images)["f1"].numpy()
    with double.serve(folder, LABELS) as served:
        yield Server(*served, features)


@pytest.fixture
def against_the_double(server):
    if not server.features:
        pytest.skip("what its versions give is unknown of a real server")


@pytest.fixture
def paths(tmp_path):
    """`FILES` and `BROKEN` on disk."""
    paths = [tmp_path / f"{name}.image" for name in ("first", "second", "third", "broken")]
    for path, content in zip(paths, [*FILES, BROKEN], strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


def run_here(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
    module.main()


def test_both_clients_give_the_same(server):
    by_grpc, by_rest = server.embed_both(FILES)
    assert by_grpc.dtype == by_rest.dtype == np.float32
    assert len(by_grpc) == len(FILES) and by_grpc.ndim == 2
    np.testing.assert_allclose(by_grpc, by_rest, atol=1e-5)
    (alone,) = client.embed_grpc(server.grpc, FILES[1:2])
    np.testing.assert_allclose(alone, by_grpc[1], atol=1e-5)


def test_versions_and_labels(server, against_the_double):
    first, second = server.features.values()
    assert np.abs(first - second).max() > 0.01
    for version, expected in (
        ({}, second),
        ({"version": 1}, first),
        ({"label": "stable"}, first),
        ({"label": "canary"}, second),
    ):
        for f1 in server.embed_both(FILES, **version):
            np.testing.assert_allclose(f1, expected, atol=1e-5)
    server.refuses("Unrecognized servable version label: a/b", FILES, label="a/b")
    server.refuses("Servable not found", FILES, version=9)


def test_a_broken_image_fails_alone(server):
    before, _ = server.embed_both(FILES)
    server.refuses("An image must be a complete JPEG", [b"no image"])
    server.refuses(".", [BROKEN])
    server.refuses(".", [FILES[0], BROKEN])
    for f1 in server.embed_both(FILES):
        np.testing.assert_allclose(f1, before, atol=1e-5)


def test_the_clients_are_commands(server, paths):
    for address, version in (
        (f"--grpc={server.grpc}", []),
        (f"--rest={server.rest}", ["--label=stable"] if server.features else []),
    ):
        done = subprocess.run(
            [sys.executable, KIT / "client.py", address, *version, paths[0], paths[-1]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        numbers = r"\d+ numbers of norm [\d.]+: (-?\d+\.\d+ ){5}\.\.\."
        assert re.fullmatch(f"{paths[0]}: {numbers}\n", done.stdout)
        assert done.stderr.splitlines()[-1].startswith(f"{paths[-1]}: {address[7:]} answers ")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "address", [f"--grpc={NOWHERE}", f"--rest=http://{NOWHERE}", "--rest=host"]
)
def test_without_a_server_there_is_a_sentence(paths, monkeypatch, address):
    for module in (client, load):
        with pytest.raises(
            SystemExit, match=f"{address[7:]} (does not answer|answers UNAVAILABLE)"
        ):
            run_here(module, monkeypatch, address, paths[0])
        with pytest.raises(SystemExit, match="No such file"):
            run_here(module, monkeypatch, address, "missing.png")


def test_an_empty_batch_is_never_sent():
    """Nor is a server looked for: there is none, and no other error."""
    for embed in (client.embed_grpc, client.embed_rest):
        for nothing in ([], (), np.array([], object), iter(())):
            with pytest.raises(client.ServingError) as caught:
                embed(NOWHERE, nothing)
            assert str(caught.value) == "files must hold at least one image. Received: none"
    for files, batch in (([], 1), ([b"1"], 0)):
        with pytest.raises(client.ServingError, match=f"{len(files)} files, batch={batch}"):
            load.measure(pytest.fail, files, concurrency=1, seconds=0.1, batch=batch)


def test_an_image_without_bytes_is_sent(server):
    server.refuses("An image must be a complete JPEG", [b""])


BUSY = {
    "threads": tf.errors.ResourceExhaustedError(None, None, "Server Threadpool Exhausted"),
    "queue": tf.errors.UnavailableError(None, None, "The batch scheduling queue is full"),
}


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_busy_server_is_asked_again(server, against_the_double, monkeypatch, protocol, busy):
    pauses = []
    monkeypatch.setattr(client.time, "sleep", pauses.append)
    monkeypatch.setattr(client.random, "uniform", lambda least, most: least + most)
    embed, asked = server.clients()[protocol], server.double.requests
    server.double.refusals += 8 * [BUSY[busy]]
    np.testing.assert_allclose(embed(FILES), server.features[2], atol=1e-5)
    assert server.double.requests == asked + 9
    np.testing.assert_allclose(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3, 3, 3])


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_a_server_that_stays_busy(server, against_the_double, monkeypatch, protocol):
    monkeypatch.setattr(client, "TIMEOUT", 1)
    embed, asked = server.clients()[protocol], server.double.requests
    server.double.refusals += 1000 * [BUSY["threads"]]
    start = time.monotonic()
    with pytest.raises(client.ServingError) as caught:
        embed(FILES)
    message = r"\S+ answers (RESOURCE_EXHAUSTED|HTTP 429): Server Threadpool Exhausted"
    assert re.fullmatch(rf"{message} \(also after \d\.\d s of retries\)", str(caught.value))
    assert time.monotonic() - start < 5
    assert 2 <= server.double.requests - asked < 1000
    asked = server.double.requests
    with pytest.raises(client.ServingError, match=f"^{message}$"):
        embed(FILES, retry=False)
    assert server.double.requests == asked + 1
    server.double.refusals.clear()


def test_other_errors_are_not_asked_again(server, against_the_double):
    for embed in server.clients().values():
        asked = server.double.requests
        with pytest.raises(client.ServingError, match="An image must be a complete JPEG"):
            embed([b"no image"])
        assert server.double.requests == asked + 1


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "code, kind, body, expected",
    [
        (400, "application/json", {"error": 'JSON Value: {\n  "a": 1\n}\tIs not object'}, None),
        (400, "application/json", {"error": f"JSON Value: {LONG} Is not object"}, None),
        (404, "application/json", {"error": "é"}, "é"),
        (400, "application/json", {"error": "no\n\t [[{{node a}}]]\n\t [[b]]"}, "no"),
        (403, "application/json", {"error": {"why": "so"}}, '{"why": "so"}'),
        (403, "application/json", {"message": "so"}, '{"message": "so"}'),
        (403, "application/json", ["so"], '["so"]'),
        (500, "application/json", {"error": ""}, '{"error": ""}'),
        (500, "application/json", {"error": "\x1b\ud800"}, "\ufffd\ufffd"),
        (500, "application/json", b'{"error": "so', '{"error": "so'),
        (502, "text/html", b"<html><style>a</style>\n<p>Bad &amp; so</html>", "Bad & so"),
        (502, "text/html; charset=latin-1", "<p>für</p>".encode("latin-1"), "für"),
        (502, "text/plain; charset=none", b"so", "so"),
        (502, "text/html; charset=hex", b"<b>so</b>", "so"),
        (413, "text/plain", b"Too\r\nlarge\r\n", "Too large"),
        (500, "text/plain", b"", "it gives no reason"),
        (500, "text/html", b"<html></html>", "it gives no reason"),
        (500, "application/json", b"\x00\x01", "2 bytes that are no text"),
        (500, "image/png", FILES[0], f"{len(FILES[0])} bytes that are no text"),
        (200, "text/html", b"<h1>Log in</h1>", "Log in"),
        (200, "application/json", {"error": "so"}, "so"),
        (200, "application/json", {"predictions": [[1], [1, 2]]}, '{"predictions": [[1], [1, 2]]}'),
        (200, "application/json", [], "[]"),
    ],
)
def test_reasons_are_complete(code, kind, body, expected):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    handler = double.answerer(code, kind, body)
    with double.http_server(handler) as address, pytest.raises(client.ServingError) as caught:
        client.embed_rest(address, FILES)
    start, reason = str(caught.value).split(": ", 1)
    assert f"{start}: " == f"{address} answers HTTP {code}: ", caught.value
    assert reason.isprintable() and len(reason) < 600
    if expected is None:
        assert reason.startswith("JSON Value: ") and reason.endswith(" Is not object")
    else:
        assert reason == expected


@pytest.mark.parametrize("code", [429, 503, 500])
def test_a_busy_proxy(monkeypatch, code):
    monkeypatch.setattr(client, "TIMEOUT", 0.5)
    handler = double.answerer(code, "text/html", b"<p>Server Threadpool Exhausted</p>")
    message = r"Exhausted \(also after \d\.\d s of retries\)$"
    with (
        double.http_server(handler) as address,
        pytest.raises(client.ServingError, match=message),
    ):
        client.embed_rest(address, FILES)


def test_reasons_by_grpc(server, against_the_double):
    why = "JSON Value: {\n  so\n}\n\t [[{{node a}}]]"
    server.double.refusals.append(tf.errors.InvalidArgumentError(None, None, why))
    with pytest.raises(client.ServingError, match=r" INVALID_ARGUMENT: JSON Value: \{ so \}$"):
        client.embed_grpc(server.grpc, FILES)


def test_the_wrong_port(server):
    with pytest.raises(client.ServingError, match="is it the port for gRPC"):
        client.embed_rest(f"http://{server.grpc}", FILES)


def test_load_is_measured_right():
    sent = []

    def embed(files):
        sent.append(files)
        time.sleep(0.02)

    result = load.measure(embed, [b"1", b"2", b"3"], concurrency=4, seconds=1, batch=2)
    # 50 a second by each of four threads at most, fewer on a busy machine.
    assert 0 < result["requests_per_second"] <= 204
    assert result["images_per_second"] == 2 * result["requests_per_second"]
    assert len(sent) > 1.05 * result["requests_per_second"]  # the rest was for warm-up
    assert 20 <= result["latency_ms"]["p50"]
    assert all(len(files) == 2 for files in sent) and {b"1", b"2", b"3"} == set(sum(sent, []))


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_load(server, paths, monkeypatch, capsys, tmp_path, protocol):
    address, file = f"--{protocol}={getattr(server, protocol)}", tmp_path / "load.json"
    options = ("--concurrency=2", "--seconds=1", "--batch=2", f"--json={file}")
    run_here(load, monkeypatch, address, *options, *paths[:3])
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert result["images_per_second"] == 2 * result["requests_per_second"] > 0
    latencies = list(result["latency_ms"].values())
    assert 0 < latencies[0] and latencies == sorted(latencies)
    assert f"requests/s  {result['requests_per_second']:.1f}\n" in printed
    assert result["errors"] == 0 and printed.endswith("errors      0\n")


def test_load_counts_errors_apart(server, paths, monkeypatch, capsys):
    options = ("--concurrency=1", "--seconds=0.5")
    run_here(load, monkeypatch, f"--grpc={server.grpc}", *options, paths[0], paths[-1])
    printed = capsys.readouterr().out
    assert int(re.search(r"errors +(\d+)", printed)[1]) > 0
    assert "INVALID_ARGUMENT" in printed.splitlines()[-1]
    with pytest.raises(SystemExit, match="INVALID_ARGUMENT"):
        run_here(load, monkeypatch, f"--grpc={server.grpc}", paths[-1])
    with pytest.raises(SystemExit):
        run_here(load, monkeypatch, f"--grpc={server.grpc}", "--concurrency=0", paths[0])


def test_load_does_not_ask_again(server, against_the_double, paths, monkeypatch):
    server.double.refusals.append(BUSY["threads"])
    with pytest.raises(SystemExit, match="RESOURCE_EXHAUSTED: Server Threadpool Exhausted$"):
        run_here(load, monkeypatch, f"--grpc={server.grpc}", paths[0])
    assert not server.double.refusals


def test_load_counts_what_fails_after_the_end():
    """As requests do that hang: two threads, of which one waits for longer than is measured."""
    hanging = iter([False, True])

    def embed(files):
        if next(hanging, False):
            time.sleep(0.6)
            raise client.ServingError("too late")
        time.sleep(0.01)

    result = load.measure(embed, FILES, concurrency=2, seconds=0.3, batch=1)
    assert result["errors"] == 1 and result["first_error"] == "too late"
    hanging = iter([False, True, True])
    with pytest.raises(client.ServingError, match="^No request .*; 2 failed, the first: too late"):
        load.measure(embed, FILES, concurrency=2, seconds=0.3, batch=1)


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_curl(server, paths):
    def curl(*arguments):
        return subprocess.run(
            [KIT / "curl.sh", server.rest, *arguments], capture_output=True, text=True, check=False
        )

    version = {"label": "stable"} if server.features else {}
    done = curl(paths[0], *(f"labels/{label}" for label in version.values()))
    assert done.returncode == 0, done.stderr
    state, signatures, answer = json_documents(done.stdout)
    assert state["model_version_status"][0]["state"] == "AVAILABLE"
    assert "encoded" in str(signatures["metadata"]["signature_def"])
    expected = client.embed_rest(server.rest, FILES[:1], **version)
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-5)
    done = curl(paths[-1])
    assert done.returncode == 22 and "error" in json_documents(done.stdout)[-1]
    assert curl("missing.png").returncode == 1
    for arguments in ((), ("",)):
        done = curl(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert re.fullmatch("curl.sh needs a server and an image, as in: .*\n", done.stderr)


def json_documents(text):
    documents = []
    while text := text.lstrip():
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(document)
        text = text[end:]
    return documents


def test_model_config():
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((KIT / "models.config").read_text(), config)
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == (client.MODEL, "/models/amdim")
    assert dict(model.version_labels) == LABELS
    assert list(model.model_version_policy.specific.versions) == [1, 2]


def test_batching_config():
    text = (KIT / "batching.config").read_text()
    assert text.endswith(batching_parameters())
    assert "max_batch_size { value: 64 }\n" in batching_parameters()
    # With these an empty request that is the last of its batch ends the server.
    assert "\nallowed_batch_sizes" not in text
    # No package has the message BatchingParameters, which would parse it.
    field = r'(\w+)(?:: \d+| \{ value: (?:\d+|"\w+") \})'
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {re.fullmatch(field, line)[1] for line in lines} == {
        "num_batch_threads",
        "thread_pool_name",
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
    }


def write_version(folder, number, tensorflow):
    """Of an export, what tells which TensorFlow wrote it."""
    (folder / f"{number}/assets.extra").mkdir(parents=True)
    metadata = {"class_names": ['"tensorflow": "0.1"'], **environment()}
    metadata["versions"]["tensorflow"] = tensorflow
    write_json(folder / f"{number}/assets.extra/amdim.json", metadata)


def docker_arguments(folder, *flags, **variables):
    """What serve.sh does, where `docker` prints its arguments."""
    binaries = folder / "binaries"
    binaries.mkdir(exist_ok=True)
    (binaries / "docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (binaries / "docker").chmod(0o755)
    environment = {name: x for name, x in os.environ.items() if not name.startswith("AMDIM_")}
    environment |= {"PATH": f"{binaries}:{os.environ['PATH']}", **variables}
    return subprocess.run(
        [KIT / "serve.sh", ".", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )


def compose(folder, **variables):
    """The services in compose.yml, its variables replaced as Compose does."""
    variables |= {"AMDIM_EXPORT": str(folder)}

    def value(match):
        name, default = match.groups()
        # Without a default it must be given.
        return variables.get(name) or default if default else variables[name]

    text = (KIT / "compose.yml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+):(?:-(.*?)|\?.*?)\}", value, text))["services"]


def test_the_image_is_of_the_newest_version(tmp_path):
    done = docker_arguments(tmp_path)
    assert done.returncode == 1 and not done.stdout
    message = "No version in .* says which TensorFlow exported it; set AMDIM_SERVING_IMAGE, as .*\n"
    assert re.fullmatch(message, done.stderr)
    variables = {"AMDIM_SERVING_IMAGE": "serving"}
    assert "\nserving\n" in docker_arguments(tmp_path, **variables).stdout
    for number, tensorflow in ((9, "2.19.0"), (10, "2.21.0-rc0+gpu"), (8, "2.18.0")):
        write_version(tmp_path, number, tensorflow)
    (tmp_path / "python-xla-11").mkdir()
    (tmp_path / ".unfinished.12").mkdir()
    done = docker_arguments(tmp_path)
    assert "\ntensorflow/serving:2.21.0-rc0\n" in done.stdout
    assert done.stderr.startswith("Serves with tensorflow/serving:2.21.0-rc0; AMDIM_SERVING_IMAGE ")


def test_containers(server, tmp_path):
    """The script and the compose file start the same server, whose health can be asked."""
    write_version(tmp_path, 1, "2.20.0")
    for variables, address, image in (
        ({}, "127.0.0.1", "tensorflow/serving:2.20.0"),
        (
            {"AMDIM_ADDRESS": "0.0.0.0", "AMDIM_SERVING_IMAGE": "mirror/serving:2.19.1"},
            "0.0.0.0",
            "mirror/serving:2.19.1",
        ),
    ):
        arguments = docker_arguments(tmp_path, **variables).stdout.splitlines()
        (service,) = compose(tmp_path, **variables | {"AMDIM_SERVING_IMAGE": image}).values()
        at = arguments.index(image)
        assert service["image"] == image and arguments[at + 1 :] == service["command"]
        assert {"--grpc_max_threads=128", "--enable_batching"} <= set(service["command"])
        ports = [y for x, y in itertools.pairwise(arguments) if x == "-p"]
        assert ports == service["ports"] == [f"{address}:{port}:{port}" for port in (8500, 8501)]
        assert f"{tmp_path}:/models/amdim:ro" in arguments and f"{KIT}:/kit:ro" in arguments
    assert docker_arguments(tmp_path, "--a", "--b=c d").stdout.endswith("\n--a\n--b=c d\n")
    for flag in ("model_config_file", "batching_parameters_file"):
        (path,) = (x.split("=")[1] for x in arguments if x.startswith(f"--{flag}="))
        assert (KIT / pathlib.Path(path).relative_to("/kit")).exists()
    command, *options, script = service["healthcheck"]["test"][1:]
    for address, code in ((urllib.parse.urlsplit(server.rest).netloc, 0), (NOWHERE, 1)):
        there = script.replace("127.0.0.1/8501", address.replace(":", "/"))
        done = subprocess.run([command, *options, there], capture_output=True, check=False)
        assert done.returncode == code
