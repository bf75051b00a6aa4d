"""Exported models of a SERVING_DIR in memory, and their answers.

This is the inside of `serving.local`, whatever the protocol.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from cli.errors import InputError
from cli.stack import json_of
from serving import BATCHING, loading, metrics, settings
from serving.batching import Arrays, Scheduler, parameters
from serving.loading import Input, Signature, Version
from serving.memory import MAX_HELD, Memory
from serving.refused import Refused
from serving.request_log import RequestLog
from serving.versions import MODELS_CONFIG, versions

__all__ = ["Input", "Models", "Refused", "Signature"]

_DEFAULT = "serving_default"
_State = get_model_status_pb2.ModelVersionStatus


class _Wanted(NamedTuple):
    """One model as `models.config` asks for it."""

    folder: Path
    numbers: list[int]
    labels: dict[str, int]


class _Failure(NamedTuple):
    """Files that could not be loaded, and why."""

    stamp: tuple[tuple[str, int, int], ...]
    message: str


class _Served(NamedTuple):
    """Served versions of one model. Replaced, never changed: requests read it meanwhile."""

    versions: dict[int, Version]
    labels: dict[str, int]
    failed: dict[int, _Failure]


class Models:
    """Loaded versions of a SERVING_DIR, by `models.config`.

    Args:
      serving_dir: as `serving.export` leaves it.
      batching: whether requests are computed together, as `batching_parameters.txt` says.

    Attributes:
      metrics: counts and times of all requests.
      log: where requests and their answers are written; None: nowhere.
      memory: bytes of the requests in flight.

    Raises:
      InputError: settings or versions that are missing or cannot be read.
    """

    def __init__(self, serving_dir: Path, batching: bool):
        self.metrics = metrics.Metrics()
        self.log: RequestLog | None = None
        self.memory = Memory(MAX_HELD)
        self._serving_dir = serving_dir
        numbers = parameters(serving_dir / BATCHING) if batching else None
        self._scheduler = Scheduler(numbers, self.metrics)
        self._config_error = ""
        self._served: dict[str, _Served] = {}
        for name, wanted in self._wanted().items():
            if not wanted.numbers:
                raise InputError(
                    f"{wanted.folder} holds no version of a model; mend {MODELS_CONFIG}, which"
                    " names it, or export again"
                )
            loaded = {
                number: self._load(name, wanted.folder / str(number)) for number in wanted.numbers
            }
            self._served[name] = _Served(loaded, wanted.labels, {})

    def _wanted(self) -> dict[str, _Wanted]:
        wanted = {}
        for entry in settings.read_models(self._serving_dir).model_config_list.config:
            # The official image's path; several models may be served from one folder.
            folder = self._serving_dir / PurePosixPath(entry.base_path or entry.name).name
            latest = versions(folder)[-1:] if folder.is_dir() else []
            numbers = sorted(entry.model_version_policy.specific.versions) or latest
            wanted[entry.name] = _Wanted(folder, numbers, dict(entry.version_labels))
        return wanted

    def _load(self, model: str, path: Path) -> Version:
        return loading.load_version(path, model, self.metrics)

    def refresh(self) -> bool:
        """Follows `models.config` and the folders: loads new versions, then drops unwanted ones.

        A version takes requests once it is loaded and warm. If one cannot be loaded, standard error
        gets a line, and the model keeps its versions. A label that has moved to the damaged version
        stays where it was. Files that have changed are tried again.

        Returns:
          Whether a version has come or gone.
        """
        try:
            wanted = self._wanted()
        except (InputError, OSError) as error:
            if str(error) != self._config_error:
                _say(f"{error}; until then the models stay as they are")
            self._config_error = str(error)
            return False
        self._config_error, before = "", self._loaded()
        for name, one in wanted.items():
            if one.numbers:
                served = self._served.get(name, _Served({}, {}, {}))
                self._served = {**self._served, name: self._renewed(name, one, served)}
        self._served = {name: served for name, served in self._served.items() if name in wanted}
        return before != self._loaded()

    def _loaded(self) -> dict[str, list[Path]]:
        return {
            name: [version.path for version in served.versions.values()]
            for name, served in self._served.items()
        }

    def _renewed(self, name: str, wanted: _Wanted, served: _Served) -> _Served:
        loaded, failed = dict(served.versions), {}
        for number in wanted.numbers:
            path = wanted.folder / str(number)
            if number in loaded and loaded[number].path == path:
                continue
            stamp, before = loading.stamp(path), served.failed.get(number)
            if before is not None and before.stamp == stamp:
                failed[number] = before
                continue
            try:
                loaded[number] = self._load(name, path)
            except InputError as error:
                failed[number] = _Failure(stamp, str(error))
                _say(f"{error}; until then {name} keeps its versions {sorted(served.versions)}")
        if not failed:
            loaded = {
                number: version for number, version in loaded.items() if number in wanted.numbers
            }
        labels = {
            label: n if n in loaded else served.labels.get(label, n)
            for label, n in wanted.labels.items()
        }
        if loaded != served.versions:
            _say(f"{name} now serves its versions {sorted(loaded)}")
        return _Served(loaded, labels, failed)

    def names(self) -> list[str]:
        """Names the models that are served."""
        return sorted(self._served)

    def find(self, model: str, version: int | None, label: str | None) -> Version:
        """Returns the version that is asked for. Raises Refused."""
        served = self._served.get(model)
        if served is None or not served.versions:
            message = f"Servable not found for request: Latest({model[:200]})"
            raise Refused(grpc.StatusCode.NOT_FOUND, message)
        if label is not None:
            if label not in served.labels:
                message = f"model {model} has no version label {label[:200]!r}"
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
            version = served.labels[label]
        if version is None:
            version = max(served.versions)
        if version not in served.versions:
            message = f"Servable not found for request: Specific({model}, {version})"
            raise Refused(grpc.StatusCode.NOT_FOUND, message)
        return served.versions[version]

    def signature(
        self, model: str, version: int | None, label: str | None, name: str = ""
    ) -> Signature:
        """Returns a signature of a version; no name: the default one. Raises Refused."""
        signatures = self.find(model, version, label).signatures
        if (name or _DEFAULT) not in signatures:
            message = f'Serving signature key "{name[:200]}" not found.'
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message)
        return signatures[name or _DEFAULT]

    def submit(self, signature: Signature, inputs: Arrays) -> Future[Arrays]:
        """Checks names, types and shapes, and returns the future answer. Raises Refused."""
        if inputs.keys() != signature.inputs.keys():
            message = (
                f"the signature takes {{{', '.join(signature.inputs)}}}, not"
                f" {{{', '.join(sorted(inputs))[:200]}}}"
            )
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        for name, value in inputs.items():
            dtype, shape = signature.inputs[name]
            fits = value.ndim == len(shape) and all(
                size in (None, actual) for size, actual in zip(shape, value.shape)
            )
            if value.dtype != dtype or not fits:
                expected = ", ".join("?" if size is None else str(size) for size in shape)
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"input {name!r} must be {dtype} of shape [{expected}], not {value.dtype} of"
                    f" shape {list(value.shape)}",
                )
        answer = self._scheduler.submit(signature.work, inputs)
        if self.log is not None:
            answer.add_done_callback(functools.partial(self._write, self.log, signature, inputs))
        return answer

    @staticmethod
    def _write(
        log: RequestLog, signature: Signature, inputs: Arrays, answer: Future[Arrays]
    ) -> None:
        if answer.exception() is None:
            log.add(signature, inputs, answer.result())

    def run(self, signature: Signature, inputs: Arrays, wanted: tuple[str, ...] = ()) -> Arrays:
        """Checks names, types and shapes, and computes the outputs `wanted`, or all.

        Raises Refused.
        """
        unknown = set(wanted) - set(signature.outputs)
        if unknown:
            message = f"no output {min(unknown)!r}; there are {', '.join(signature.outputs)}"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        outputs = self.submit(signature, inputs).result()
        return {name: outputs[name] for name in wanted or signature.outputs}

    @contextlib.contextmanager
    def counted(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts the request that the `with` block answers, and times it if it succeeds.

        Requests for models that are not served count as one model with an empty name, so that
        strangers cannot make names without end.
        """
        began, status = time.perf_counter(), grpc.StatusCode.INTERNAL
        name = model if model in self._served else ""
        try:
            yield
            status = grpc.StatusCode.OK
            microseconds = 1e6 * (time.perf_counter() - began)
            self.metrics.observe(metrics.LATENCY, microseconds, name, api, entrypoint)
        except Refused as error:
            status = error.code
            raise
        finally:
            self.metrics.count(metrics.REQUESTS, name, status.name)

    def status(
        self, model: str, version: int | None, label: str | None
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state of one version, or of all. Raises Refused."""
        response = get_model_status_pb2.GetModelStatusResponse()
        served = self._served.get(model)
        # An older version of the same number may be serving on.
        failed = set(served.failed).difference(served.versions) if served else set()
        if served and label is None and (version is None or version in failed):
            numbers = (
                [version]
                if version is not None
                else sorted({*served.versions, *failed}, reverse=True)
            )
        else:
            numbers = [self.find(model, version, label).number]
        for number in numbers:
            state = response.model_version_status.add(version=number, state=_State.AVAILABLE)
            state.status.SetInParent()  # OK
            if number in failed:
                state.state = _State.END
                state.status.error_code = grpc.StatusCode.DATA_LOSS.value[0]
                state.status.error_message = (
                    "the version cannot be loaded; the server's stderr says why"
                )
        return response

    def status_json(self, model: str, version: int | None, label: str | None) -> str:
        """Returns the status as TF Serving's REST protocol has it."""
        return json_of(self.status(model, version, label))

    def metadata_json(self, model: str, version: int | None, label: str | None) -> str:
        """Returns name, version and signatures as TF Serving's REST protocol has them."""
        found, spec = self.find(model, version, label), model_pb2.ModelSpec()
        spec.name, spec.version.value = model, found.number
        signatures = json_of(signature_map(found))
        return f'{{"model_spec": {json_of(spec)}, "metadata": {{"signature_def": {signatures}}}}}'


def signature_map(version: Version) -> get_model_metadata_pb2.SignatureDefMap:
    """Returns the signatures of a version."""
    return get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)


def _say(message: str) -> None:
    print(f"note: {message}", file=sys.stderr, flush=True)
