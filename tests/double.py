"""A loopback double of a model server, for the clients in `export/`.

It is not the server: sessions in this process run the SavedModels, without batching. It answers the
requests of these clients and gives errors the codes that a server gives them.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
import urllib.parse
from concurrent import futures

import grpc
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2
from tensorflow_serving.apis import prediction_service_pb2_grpc as service

PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(/metadata|:predict)?")
GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
HTTP_CODES = {
    tf.errors.INVALID_ARGUMENT: 400,
    tf.errors.NOT_FOUND: 404,
    tf.errors.RESOURCE_EXHAUSTED: 429,
    tf.errors.UNAVAILABLE: 503,
}


class Double(service.PredictionServiceServicer):
    """The versions in `folder`, and {label: version}.

    Attributes:
        requests: a count.
        refusals: list of `tf.errors.OpError`, with which the next requests are refused.
    """

    def __init__(self, folder, labels):
        self.loaded = {int(path.name): load(path) for path in folder.iterdir()}
        self.labels = labels
        self.requests, self.refusals = 0, []

    def version(self, spec):
        """The version that a ModelSpec asks for: by number, by label, or the latest."""
        if spec.version_label and spec.version_label not in self.labels:
            message = f"Unrecognized servable version label: {spec.version_label}"
            raise tf.errors.InvalidArgumentError(None, None, message)
        version = spec.version.value or self.labels.get(spec.version_label, max(self.loaded))
        if spec.name != "amdim" or version not in self.loaded:
            message = f"Servable not found for request: Specific({spec.name}, {version})"
            raise tf.errors.NotFoundError(None, None, message)
        return version

    def predict(self, request):
        """A PredictResponse to a PredictRequest; raises `tf.errors.OpError`."""
        self.requests += 1
        if self.refusals:
            raise self.refusals.pop(0)
        session, signatures = self.loaded[self.version(request.model_spec)]
        signature = signatures[request.model_spec.signature_name]
        fed = {signature.inputs[key].name: tf.make_ndarray(x) for key, x in request.inputs.items()}
        outputs = session.run({key: x.name for key, x in signature.outputs.items()}, fed)
        return predict_pb2.PredictResponse(
            outputs={key: tf.make_tensor_proto(array) for key, array in outputs.items()}
        )

    def Predict(self, request, context):
        try:
            return self.predict(request)
        except tf.errors.OpError as error:
            context.abort(GRPC_CODES[error.error_code], message_of(error))

    def rest(self, path, body):
        """What REST answers, for JSON, to a body for `encoded` or to none; raises as `predict`."""
        name, version, label, action = PATH.fullmatch(path).groups()
        spec = model_pb2.ModelSpec(name=name)
        if label:
            spec.version_label = urllib.parse.unquote(label)
        elif version:
            spec.version.value = int(version)
        if action == ":predict":
            content = json.loads(body)
            spec.signature_name = content["signature_name"]
            files = [base64.b64decode(row["bytes"]["b64"]) for row in content["instances"]]
            inputs = {"bytes": tf.make_tensor_proto(files, tf.string)}
            response = self.predict(predict_pb2.PredictRequest(model_spec=spec, inputs=inputs))
            return {"predictions": tf.make_ndarray(response.outputs["f1"]).tolist()}
        _, signatures = self.loaded[self.version(spec)]
        if action == "/metadata":
            message = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
            content = json_format.MessageToDict(message, preserving_proto_field_name=True)
            return {"metadata": {"signature_def": content}}
        status = [{"version": str(version), "state": "AVAILABLE"} for version in self.loaded]
        return {"model_version_status": status}


def load(folder):
    """A version in a session, as a server has it, and its signatures."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        return session, tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def


def message_of(error):
    """Of an OpError, without what Python puts before it."""
    return error.message.removeprefix("Graph execution error:\n\n")


def rest_handler(double):
    """The class of handlers through which an HTTPServer asks `double`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body):
            try:
                code, content = 200, double.rest(self.path, body)
            except tf.errors.OpError as error:
                code, content = HTTP_CODES[error.error_code], {"error": message_of(error)}
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            self.answer(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_):
            pass

    return Handler


def answerer(code, kind, body):
    """The class of handlers through which an HTTPServer answers each POST alike."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


@contextlib.contextmanager
def http_server(handler):
    """The address of an HTTPServer that runs while in context."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serve(folder, labels):
    """Serves while in context: two addresses, for gRPC and for REST, and the `Double`."""
    double = Double(folder, labels)
    by_grpc = grpc.server(futures.ThreadPoolExecutor(8))
    service.add_PredictionServiceServicer_to_server(double, by_grpc)
    port = by_grpc.add_insecure_port("127.0.0.1:0")
    by_grpc.start()
    try:
        with http_server(rest_handler(double)) as by_rest:
            yield f"127.0.0.1:{port}", by_rest, double
    finally:
        by_grpc.stop(None)
