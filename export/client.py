"""Features of image files from a model server, by gRPC or REST.

    python export/client.py --grpc=localhost:8500 --label=stable IMAGE...
    python export/client.py --rest=http://localhost:8501 --version=2 IMAGE...

It stands alone. REST needs NumPy, gRPC `tensorflow-serving-api` besides.
"""

import argparse
import base64
import functools
import http.client
import json
import os
import pathlib
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

MODEL, SIGNATURE = "amdim", "encoded"
TIMEOUT = 30  # seconds


class ServingError(Exception):
    """There is no server, or it refuses a request; the message is one sentence."""


def embed_grpc(address, files, label=None, version=None):
    """Features f1 of image files by gRPC, in one request.

    Args:
        address: host and port, as `localhost:8500`.
        files: list of bytes, each a JPEG, PNG, BMP, or GIF, of which the first frame counts.
        label, version: which version to ask, by either; the server's latest if neither is given.

    Returns:
        Array (N,nrkhs) float32.

    Raises:
        ServingError: no answer within 30 s, or an error, such as for a broken image.
    """
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
    try:
        response = connect(address).Predict(request, TIMEOUT)
    except grpc.RpcError as error:
        message = f"{error.code().name}: {first_line(error.details())}"
        raise ServingError(f"{address} answers {message}") from error
    return tf.make_ndarray(response.outputs["f1"])


@functools.cache
def connect(address):
    """A PredictionServiceStub whose connection all requests to `address` share."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))


def embed_rest(address, files, label=None, version=None):
    """`embed_grpc` by REST, at an `address` as `http://localhost:8501`."""
    path = f"{address}/v1/models/{MODEL}"
    if label:
        path += f"/labels/{urllib.parse.quote(label, safe='')}"
    elif version:
        path += f"/versions/{version}"
    instances = [{"bytes": {"b64": base64.b64encode(file).decode()}} for file in files]
    body = json.dumps({"signature_name": SIGNATURE, "instances": instances}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        answer = fetch(urllib.request.Request(f"{path}:predict", body, headers))
    except http.client.HTTPException as error:
        message = f"{address} gives no whole answer by HTTP; is it the port for gRPC?"
        raise ServingError(message) from error
    except (OSError, ValueError) as error:
        raise ServingError(f"{address} does not answer as a model server: {error}") from error
    if "error" in answer:
        raise ServingError(f"{address} answers {first_line(answer['error'])}")
    return np.array(answer["predictions"], "float32")


def fetch(request):
    """What a server answers in JSON, be it an error."""
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)


def first_line(message):
    """The rest of a server's message says where in the graph it failed."""
    return message.partition("\n")[0]


def argument_parser(description):
    """Of the arguments that `embedder` takes, and of images."""
    parser = argparse.ArgumentParser(description=description)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--grpc", metavar="HOST:PORT", help="as localhost:8500")
    server.add_argument("--rest", metavar="URL", help="as http://localhost:8501")
    version = parser.add_mutually_exclusive_group()
    version.add_argument("--label", help="of the version to ask; the latest version by default")
    version.add_argument("--version", type=int, help="number of the version to ask")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, GIF or BMP")
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
