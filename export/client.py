"""Features of image files from a model server, by gRPC or REST.

    python export/client.py --grpc=localhost:8500 --label=stable IMAGE...
    python export/client.py --rest=http://localhost:8501 --version=2 IMAGE...

It stands alone. REST needs NumPy, gRPC `tensorflow-serving-api` besides.
"""

import argparse
import base64
import contextlib
import functools
import html
import http.client
import json
import os
import pathlib
import random
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

MODEL, SIGNATURE = "amdim", "encoded"
TIMEOUT = 30  # seconds, retries included
LONGEST_REASON = 500  # characters
NOWHERE = ("failed to connect", "errors resolving", "DNS resolution failed")


class ServingError(Exception):
    """There is no image, no server, or it refuses a request; the message is one sentence."""


class BusyError(ServingError):
    """The server refuses a request now and may take it soon."""


def embed_grpc(address, files, label=None, version=None, retry=True):
    """Features f1 of image files by gRPC, in one request.

    Args:
        address: host and port, as `localhost:8500`.
        files: list of bytes, each a JPEG, PNG, WebP, BMP, or GIF, of which the first frame counts;
            at least one.
        label, version: which version to ask, by either; the server's latest if neither is given.
        retry: ask a busy server again, until it answers or 30 s are over.

    Returns:
        Array (N,nrkhs) float32.

    Raises:
        ServingError: no image, no answer within 30 s, or an error, such as for a broken image.
    """
    files = some(files)
    # Here, since they load TensorFlow, which takes seconds and which REST does without.
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(
        inputs={"bytes": tf.make_tensor_proto(files, tf.string, [len(files)])}
    )
    request.model_spec.name, request.model_spec.signature_name = MODEL, SIGNATURE
    if label:
        request.model_spec.version_label = label
    elif version:
        request.model_spec.version.value = version

    def ask(seconds):
        try:
            response = connect(address).Predict(request, seconds)
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            # Of a server that it cannot reach, gRPC itself says UNAVAILABLE.
            reached = not details.startswith(NOWHERE)
            busy = code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE") and reached
            message = f"{address} answers {code}: {one_line(details)}"
            raise (BusyError if busy else ServingError)(message) from error
        return tf.make_ndarray(response.outputs["f1"])

    return while_busy(ask, retry)


@functools.cache
def connect(address):
    """A PredictionServiceStub whose connection all requests to `address` share."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))


def embed_rest(address, files, label=None, version=None, retry=True):
    """`embed_grpc` by REST, at an `address` as `http://localhost:8501`."""
    path = f"{address}/v1/models/{MODEL}"
    if label:
        path += f"/labels/{urllib.parse.quote(label, safe='')}"
    elif version:
        path += f"/versions/{version}"
    instances = [{"bytes": {"b64": base64.b64encode(file).decode()}} for file in some(files)]
    body = json.dumps({"signature_name": SIGNATURE, "instances": instances}).encode()
    headers = {"Content-Type": "application/json"}

    def ask(seconds):
        try:
            request = urllib.request.Request(f"{path}:predict", body, headers)
            code, text = fetch(request, seconds)
        except http.client.HTTPException as error:
            message = f"{address} gives no whole answer by HTTP; is it the port for gRPC?"
            raise ServingError(message) from error
        except (OSError, ValueError) as error:
            raise ServingError(f"{address} does not answer as a model server: {error}") from error
        if code == 200:
            with contextlib.suppress(ValueError, LookupError, TypeError):
                return np.array(json.loads(text)["predictions"], "float32")
        message = f"{address} answers HTTP {code}: {reason(text)}"
        busy = code in (429, 503) or "Server Threadpool Exhausted" in message
        raise (BusyError if busy else ServingError)(message)

    return while_busy(ask, retry)


def some(files):
    """`files` as a list; raises `ServingError` if there are none."""
    files = list(files)
    if not files:
        # Never to be sent: a server with batching does not answer, and keeps a thread waiting.
        raise ServingError("files must hold at least one image. Received: none")
    return files


def while_busy(ask, retry):
    """What `ask` gives, which is asked again as long as it raises `BusyError`.

    The pauses double, up to 3 s, and are random: clients that are refused together would come
    back together otherwise.

    Args:
        ask: a function of the seconds it may take.
        retry: without it `ask` is called once.

    Raises:
        ServingError: as `ask` does, or the server is busy for `TIMEOUT`.
    """
    start, longest = time.monotonic(), 0.1
    while True:
        try:
            return ask(TIMEOUT - (time.monotonic() - start))
        except BusyError as error:
            if not retry:
                raise
            pause, passed = random.uniform(0, longest), time.monotonic() - start
            if passed + pause > 0.9 * TIMEOUT:  # the rest would be too short for an answer
                message = f"{error} (also after {passed:.1f} s of retries)"
                raise ServingError(message) from error
        time.sleep(pause)
        longest = min(2 * longest, 3)


def fetch(request, seconds):
    """The code and the text that a server answers, be it an error."""
    try:
        response = urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        body = response.read()
    return response.status, text_of(body, response.headers.get_content_charset("utf-8"))


def text_of(body, charset):
    """The text that is in bytes, or the sentence that there is none."""
    for encoding in (charset, "utf-8"):
        with contextlib.suppress(UnicodeError, LookupError):
            if "\0" not in (text := body.decode(encoding)):
                return text
    return f"{len(body)} bytes that are no text"


def reason(text):
    """Why a server refuses, in one line: the `error` in JSON, a page without its tags."""
    try:
        answer = json.loads(text, strict=False)
    except ValueError:
        if text.lstrip().startswith("<"):
            text = html.unescape(re.sub(r"(?is)<(script|style)\b.*?</\1>|<.*?>", " ", text))
        return one_line(text)
    if isinstance(answer, dict) and answer.get("error"):
        text = answer["error"]
    return one_line(text if isinstance(text, str) else json.dumps(text))


def one_line(message):
    """A message as one printable line, without what follows it on where in the graph it failed.

    Of a long one, such as with a request in it, the reason is at one of the ends.
    """
    line = " ".join(message.partition("\n\t [[")[0].split())
    line = "".join(x if x.isprintable() else "\N{REPLACEMENT CHARACTER}" for x in line)
    if len(line) > LONGEST_REASON:
        line = f"{line[: LONGEST_REASON // 2]} ... {line[-LONGEST_REASON // 2 :]}"
    return line or "it gives no reason"


def argument_parser(description):
    """Of the arguments that `embedder` takes, and of images."""
    parser = argparse.ArgumentParser(description=description)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--grpc", metavar="HOST:PORT", help="as localhost:8500")
    server.add_argument("--rest", metavar="URL", help="as http://localhost:8501")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--label", help="of the version to ask; the latest version by default")
    version.add_argument("--version", type=int, help="number of the version to ask")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, GIF or BMP")
    return parser


def embedder(arguments):
    """`embed_grpc` or `embed_rest`, as a function of files, for the server in `arguments`."""
    embed, address = embed_rest, arguments.rest
    if arguments.grpc:
        embed, address = embed_grpc, arguments.grpc
        # TensorFlow's own log, most of which then stays out of the command's output.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return functools.partial(embed, address, label=arguments.label, version=arguments.version)


def main():
    arguments = argument_parser("f1 of each image: length, norm and first numbers.").parse_args()
    embed = embedder(arguments)
    for path in arguments.images:
        try:
            (f1,) = embed([pathlib.Path(path).read_bytes()])
        except (OSError, ServingError) as error:
            sys.exit(f"{path}: {error}")
        first = " ".join(f"{x:.4f}" for x in f1[:5])
        print(f"{path}: {len(f1)} numbers of norm {np.linalg.norm(f1):.4f}: {first} ...")


if __name__ == "__main__":
    main()
