"""The exported models of a SERVING_DIR in memory, and what they answer: the inside of `serving.local`, whatever the protocol."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from cli.errors import InputError
from cli.stack import json_of
from serving import BATCHING, settings
from serving.versions import MODELS_CONFIG, SAVED_MODEL, load, versions

_DEFAULT = "serving_default"


class Refused(Exception):
    """A request that is not answered: gRPC's code, and HTTP's where it is not the one that belongs to that."""

    def __init__(self, code: grpc.StatusCode, message: str, http: int | None = None):
        super().__init__(message)
        self.code, self.http = code, http


class Input(NamedTuple):
    """Type (object for strings) and shape (None: any size) of an input."""

    dtype: np.dtype
    shape: tuple[int | None, ...]


class Signature(NamedTuple):
    """A function of a version: arrays by input's name -> arrays by output's name."""

    model: str
    version: int
    name: str
    inputs: dict[str, Input]
    outputs: tuple[str, ...]
    call: Callable[..., dict[str, tf.Tensor]]


class _Version(NamedTuple):
    signatures: dict[str, Signature]
    definitions: dict[str, meta_graph_pb2.SignatureDef]
    loaded: Any  # keeps the variables alive


class Models:
    """The loaded versions of a SERVING_DIR, by `models.config`.

    Args:
      serving_dir: as `serving.export` leaves it.
      batching: whether requests wait for each other, as `batching_parameters.txt` says.

    Raises:
      InputError: settings or versions that are missing or cannot be read.
    """

    def __init__(self, serving_dir: Path, batching: bool):
        self._batching = _batching(serving_dir / BATCHING) if batching else None
        self._versions: dict[str, dict[int, _Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        for entry in settings.read_models(serving_dir).model_config_list.config:
            # The official image's path; several models may be served from one folder.
            folder = serving_dir / PurePosixPath(entry.base_path or entry.name).name
            numbers = sorted(entry.model_version_policy.specific.versions) or (versions(folder)[-1:] if folder.is_dir() else [])
            if not numbers:
                raise InputError(f"{folder} holds no version of a model; mend {MODELS_CONFIG}, which names it, or export again")
            self._labels[entry.name] = dict(entry.version_labels)
            self._versions[entry.name] = {n: self._load(folder / str(n), entry.name, n) for n in numbers}

    def _load(self, path: Path, model: str, number: int) -> _Version:
        if not (path / SAVED_MODEL).is_file():
            raise InputError(f"{path} holds no SavedModel; mend {MODELS_CONFIG}, which names it, or export again")
        loaded = load(path)
        definitions = saved_model_pb2.SavedModel.FromString((path / SAVED_MODEL).read_bytes()).meta_graphs[0].signature_def
        signatures = {}
        for name, function in loaded.signatures.items():
            inputs = {}
            for key, spec in function.structured_input_signature[1].items():
                dtype = np.dtype(object) if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)
                inputs[key] = Input(dtype, tuple(spec.shape.as_list()))
            outputs = tuple(sorted(function.structured_outputs))
            call = _batched(function, outputs, self._batching) if self._batching else function
            signatures[name] = Signature(model, number, name, inputs, outputs, call)
        return _Version(signatures, {n: d for n, d in definitions.items() if n in signatures}, loaded)

    def find(self, model: str, version: int | None, label: str | None) -> int:
        """The number of the version that is asked for. Raises Refused."""
        if model not in self._versions:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({model[:200]})")
        if label is not None:
            if label not in self._labels[model]:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"model {model} has no version label {label[:200]!r}")
            version = self._labels[model][label]
        if version is None:
            version = max(self._versions[model])
        if version not in self._versions[model]:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific({model}, {version})")
        return version

    def signature(self, model: str, version: int | None, label: str | None, name: str = "") -> Signature:
        """A signature of a version; no name: the default one. Raises Refused."""
        number = self.find(model, version, label)
        signatures = self._versions[model][number].signatures
        if (name or _DEFAULT) not in signatures:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name[:200]}" not found.')
        return signatures[name or _DEFAULT]

    def run(self, signature: Signature, inputs: dict[str, np.ndarray], wanted: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """Checks names, types and shapes, and computes. Raises Refused."""
        if inputs.keys() != signature.inputs.keys():
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the signature takes {{{', '.join(signature.inputs)}}}, not {{{', '.join(sorted(inputs))[:200]}}}",
            )
        for name, value in inputs.items():
            dtype, shape = signature.inputs[name]
            fits = value.ndim == len(shape) and all(size in (None, actual) for size, actual in zip(shape, value.shape))
            if value.dtype != dtype or not fits:
                expected = ", ".join("?" if size is None else str(size) for size in shape)
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"input {name!r} must be {dtype} of shape [{expected}], not {value.dtype} of shape {list(value.shape)}",
                )
        unknown = set(wanted) - set(signature.outputs)
        if unknown:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"no output {min(unknown)!r}; there are {', '.join(signature.outputs)}")
        try:
            tensors = {n: tf.constant(value, tf.string if value.dtype == object else None) for n, value in inputs.items()}
            outputs = signature.call(**tensors)
        except tf.errors.OpError as error:
            code = _CODES.get(error.error_code, grpc.StatusCode.INTERNAL)
            raise Refused(code, _reason(str(error.message))) from error
        return {name: outputs[name].numpy() for name in wanted or signature.outputs}

    def status(self, model: str, version: int | None, label: str | None) -> get_model_status_pb2.GetModelStatusResponse:
        """The state of one version, or of all. Raises Refused."""
        found = self.find(model, version, label)
        response = get_model_status_pb2.GetModelStatusResponse()
        for number in sorted(self._versions[model], reverse=True) if version is None and label is None else [found]:
            state = response.model_version_status.add(version=number, state=get_model_status_pb2.ModelVersionStatus.AVAILABLE)
            state.status.SetInParent()  # OK
        return response

    def status_json(self, model: str, version: int | None, label: str | None) -> str:
        """The status as TF Serving's REST protocol has it."""
        return json_of(self.status(model, version, label))

    def signature_map(self, model: str, number: int) -> get_model_metadata_pb2.SignatureDefMap:
        """The signatures of a version."""
        return get_model_metadata_pb2.SignatureDefMap(signature_def=self._versions[model][number].definitions)

    def metadata_json(self, model: str, version: int | None, label: str | None) -> str:
        """Name, version and signatures as TF Serving's REST protocol has them."""
        number = self.find(model, version, label)
        spec = model_pb2.ModelSpec()
        spec.name, spec.version.value = model, number
        return f'{{"model_spec": {json_of(spec)}, "metadata": {{"signature_def": {json_of(self.signature_map(model, number))}}}}}'


# tf.errors.OpError.error_code (google.rpc.Code) -> gRPC's own
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _batching(path: Path) -> dict[str, Any]:
    """The numbers of `batching_parameters.txt` under the names of TensorFlow's batch function.

    The message itself is not part of tensorflow-serving-api; these fields are all that its text needs.
    """
    try:
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; make it with run_export.sh") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; mend it, or delete it and export again") from error
    number = r"(\d{1,18})\b"  # more digits are no number that TensorFlow takes
    found = re.findall(rf"(\w+)\s*\{{\s*value\s*:\s*{number}\s*\}}", text)
    numbers = {name: int(value) for name, value in found}
    try:
        names = ("num_batch_threads", "max_batch_size", "batch_timeout_micros", "max_enqueued_batches")
        parameters: dict[str, Any] = {name: numbers[name] for name in names}
    except KeyError as error:
        raise InputError(f"{path} does not say {error.args[0]}; mend it, or delete it and export again") from error
    allowed = re.findall(rf"allowed_batch_sizes\s*:\s*{number}", text)
    return {**parameters, "allowed_batch_sizes": [int(value) for value in allowed]}


_QUEUES = itertools.count()


def _batched(function: Any, outputs: tuple[str, ...], parameters: dict[str, Any]) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns `function` with its concurrent calls computed as one batch, by the scheduler that TF Serving uses.

    A request that cannot be computed fails alone. The call raises Refused for more rows than a batch may hold.
    """
    specs = function.structured_input_signature[1]
    names = sorted(specs)
    most = parameters["max_batch_size"]

    @tf.nondifferentiable_batch_function(**parameters, autograph=False)
    def together(*tensors: tf.Tensor) -> list[tf.Tensor]:
        answer = function(**dict(zip(names, tensors)))
        return [answer[name] for name in outputs]

    @tf.function(input_signature=[specs[name] for name in names], autograph=False)
    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        # TensorFlow finds the queue of waiting requests by the operation's name, in the whole process. Functions with one
        # name would share a queue, and one of them would answer the requests of all.
        with tf.name_scope(f"queue_{next(_QUEUES)}"):
            return together(*tensors)

    traced = call.get_concrete_function()  # now: many threads that call it for the first time would each trace it

    def by_name(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = inputs[names[0]].shape[0]
        if rows == 0:
            return function(**inputs)
        if rows > most:
            message = f"the request has {rows} rows; at most {most} are accepted in one request"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        try:
            return dict(zip(outputs, traced(*(inputs[name] for name in names))))
        except tf.errors.InvalidArgumentError:
            # One request of another shape fails the whole batch. Computed alone, only the faulty request fails.
            return function(**inputs)

    return by_name


_STACK = ("Graph execution error:", "Detected at node", 'File "', "<stack traces unavailable>")


def _reason(message: str) -> str:
    """Returns TensorFlow's error message as one line, without its Python stack, which names files of this machine."""
    lines = [line.strip() for line in message.splitlines()]
    last = max((i for i, line in enumerate(lines) if line.startswith(_STACK)), default=-1)
    text = " ".join(lines[last + 1 :])
    text = re.sub(r"\[\[.*?\]\]|\{\{.*?\}\}|\[Op:\w+\]", "", text)
    return " ".join(text.split())[:500] or "the model cannot compute this request"
