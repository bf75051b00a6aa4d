"""Exports a trained model as a SavedModel that takes encoded images, as TF Serving loads it.

    ./run_export.sh --workdir=SERVING_DIR --model=TRAINING_DIRECTORY [--name=classifier] \
        [--evaluation=DIR] [--weights=float32|bfloat16|float16] [--optimize] [--onnx] \
        [--license="…"] [--max_pixels=25000000] [--neighbors=DATA]

leaves in SERVING_DIR

    NAME/1/                 the SavedModel (see `serving.signatures`), MODEL_CARD.md; another model
                            gets the next number
    NAME/1/assets.extra/    labels.txt (a class a line), export.json (which model this is, what its
                            card tells), requests to warm it up, preprocessing.json and
                            preprocess.py (how pixels reach the network), with --onnx model.onnx,
                            with --neighbors neighbors.npz (see `serving.neighbors`)
    models.config, …        TF Serving's settings, see `serving.settings`
    summary.json            last: `export` (path of the version), `name`, `version`, `label_names`,
                            `signatures`, `deviation`

A version is written under a name that is not a number, and renamed when it is whole. So a server
that watches the folder never sees half a version. `training.model_dir.load` gives
the weights (averaged where the run kept an average). The graph prepares images by the same
functions as evaluation. Before the rename the written model answers a few images, and its answers
are compared with the trained model's.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging as absl_logging
from tensorflow.core.protobuf import saved_model_pb2

from cli import buckets
from cli.errors import InputError
from cli.json_files import read_json, write_json
from cli.work_dirs import fingerprint, finish, require_finished, say_done
from serving import assets, onnx_file, probes, settings
from serving.images import MAX_PIXELS
from serving.neighbors import open_labeled, write_index
from serving.signatures import Classifier
from serving.versions import EXPORT, SAVED_MODEL, digests, versions
from training import model_dir
from training.optimize import WEIGHTS
from training.writes import writing

NAME = "classifier"
# Two computations of the same function give probabilities that differ by less than this, whatever
# the order and rounding of their sums.
SAME = 1e-4
_TEMPORARY = ".export.tmp"  # TF Serving looks at numbers only


def main(
    workdir: str,
    model: str,
    name: str = NAME,
    evaluation: str | None = None,
    weights: str = "float32",
    optimize: bool = False,
    license: str | None = None,
    max_pixels: int = MAX_PIXELS,
    onnx: bool = False,
    neighbors: str | None = None,
) -> None:
    """Exports the training directory (or `model/`) `model` into `workdir`; see the module.

    Where a version has the model already, a new `evaluation` or `license` goes into its card, and
    `onnx` and `neighbors` add their files. So no export of a model becomes another canary.

    Raises:
      InputError: the flags are unusable, the model is missing or unfinished, or `workdir` belongs
        to another stage. Or an ONNX file cannot be made or answers differently.
    """
    if weights not in WEIGHTS:
        raise InputError(f"--weights is {weights!r}; it can be {', '.join(WEIGHTS)}")
    if onnx:
        onnx_file.check_available(weights)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"--name is {name!r}; it becomes part of a URL: letters, digits, '_', '-' and '.'"
        )
    if name.endswith(settings.CANARY_SUFFIX):
        raise InputError(
            f"--name is {name!r}; names that end in {settings.CANARY_SUFFIX} belong to canaries;"
            " choose another"
        )
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise InputError(f"--workdir: {workdir} is a file; name a directory")
    _require_serving_dir(Path(workdir))
    spec, run = model_dir.read_spec(model), model_dir.run_directory(Path(model))
    if neighbors:
        open_labeled(neighbors, spec.label_names)
    origin = {
        "model": fingerprint(run),
        "preprocessing": spec.preprocessing.to_dict(),
        "weights": weights,
        "optimize": optimize,
        "max_pixels": max_pixels,
    }
    told: dict[str, Any] = {
        **({"evaluation": _evaluation(evaluation, run)} if evaluation else {}),
        **({"license": license} if license else {}),
    }

    serving_dir, folder = Path(workdir), Path(workdir) / name
    _remove_unfinished(folder)
    version, newest = _find_version(folder, origin)
    summary = serving_dir / "summary.json"
    if version is not None:
        path = folder / str(version)
        if onnx:
            assets.add_onnx(path, model)
        if neighbors:
            assets.add_neighbors(path, model, neighbors)
        if assets.tell(path, spec, run, told):
            print(f"the card of {path} is written anew")
        if summary.exists() and read_json(summary, dict).get("export") == str(path):
            if not all((serving_dir / file).exists() for file in settings.FILES):
                settings.write(serving_dir, name)  # somebody has deleted one
            say_done(workdir, _done(workdir, path, newest))
            return
    else:
        version = 1 + max(
            (int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0
        )
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write_version(
                folder,
                version,
                model,
                {**origin, "evaluation": None, "license": assets.LICENSE, **told},
                onnx,
                neighbors,
            )
        except InputError:
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
            raise
    path = folder / str(version)
    settings.write(serving_dir, name)
    deviation = read_json(path / EXPORT, assets.STORED)["deviation"]
    finish(
        serving_dir,
        {
            "export": str(path),
            "name": name,
            "version": version,
            "label_names": list(spec.label_names),
            "signatures": describe(path),
            "deviation": deviation,
        },
        _done(workdir, path, newest),
    )
    if version < newest:
        print(_done(workdir, path, newest))
        return
    print(
        f"exported {model} to {path}; its probabilities differ from the trained model's by at most"
        f" {deviation:.2g}"
    )


def _done(workdir: str, version: Path, newest: int) -> str:
    newer = f"; the newest version is {newest}" if int(version.name) < newest else ""
    return f"{workdir} is done: the model is in {version}{newer}"


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed run left of a version in a bucket, where a folder has no one moment."""
    for path in folder.glob("*") if buckets.holds(folder) else ():
        if path.name.isdecimal() and not (path / SAVED_MODEL).is_file():
            buckets.remove_tree(path)


def _require_serving_dir(directory: Path) -> None:
    """Raises InputError for a work directory of another stage.

    An export would overwrite its `summary.json`.
    """
    summary = directory / "summary.json"
    if (directory / "config.json").exists() or (
        summary.exists() and "signatures" not in read_json(summary, dict)
    ):
        raise InputError(
            f"--workdir: {directory} is the work directory of another stage; name another one for"
            " the exported models"
        )


def _evaluation(directory: str, run: Path) -> dict[str, Any]:
    """Returns what an evaluation says of the model of `run`, for the card.

    The model is found by its fingerprint, since many runs have a `student_2`.

    Raises:
      InputError: the evaluation is not finished, or is of other models, or `run` was trained again
        since.
    """
    summary = require_finished(directory, "evaluation", "run_evaluate.sh", {"models?": dict})
    config = Path(directory) / "config.json"
    found = read_json(config, {"models?": dict}) if config.exists() else {}
    measured = found.get("models", {})  # name -> fingerprint, as the evaluation found them
    digest = fingerprint(run)
    name = next((name for name in summary.get("models", {}) if measured.get(name) == digest), None)
    if name is None:
        raise InputError(
            f"--evaluation: {directory} holds no evaluation of {run} as it is now; its models"
            f" ({', '.join(measured) or 'none'}) are of other directories, or have been trained"
            " again since; evaluate this one with run_evaluate.sh"
        )
    summary = require_finished(
        directory, "evaluation", "run_evaluate.sh", {**assets.EVALUATION, "models": {name: dict}}
    )
    return {
        "split": summary["split"],
        "examples": summary["examples"],
        "metrics": summary["models"][name],
    }


def _write_version(
    folder: Path,
    version: int,
    model: str,
    stored: dict[str, Any],
    onnx: bool,
    neighbors: str | None,
) -> None:
    """Writes `folder`/`version`: first under a temporary name, then renamed.

    `stored` becomes its `export.json`.
    """
    temporary = folder / _TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    network, spec = model_dir.load(model)
    module = Classifier(
        network,
        spec,
        fold=stored["optimize"],
        weights=stored["weights"],
        max_pixels=stored["max_pixels"],
    )
    with _quiet(), writing("the exported model", folder):
        tf.saved_model.save(module, str(temporary), signatures=module.functions)
    stored = {
        **stored,
        "deviation": probes.deviation(temporary, network, spec),
        "deviation_images": probes.COUNT,
    }
    if math.isnan(stored["deviation"]):
        raise InputError(
            f"{model} with weights as {stored['weights']} answers with NaN or infinity; train it"
            " again, or export it as float32"
        )
    if stored["weights"] == "float32" and not stored["deviation"] <= SAME:
        raise RuntimeError(
            f"the exported model's probabilities differ by {stored['deviation']:.2g} from the"
            " trained model's"
        )
    settings.write_warmup(temporary, folder.name, spec.preprocessing.image_size)
    extra = temporary / "assets.extra"
    (extra / "labels.txt").write_text(
        "".join(f"{name}\n" for name in spec.label_names), encoding="utf-8"
    )
    assets.write_preprocessing(extra, spec.preprocessing)
    if onnx:
        stored["onnx"] = assets.write_onnx(extra, network, spec, stored)
    if neighbors:
        stored["neighbors"] = write_index(temporary, neighbors, spec.label_names)
    write_json(temporary / EXPORT, {**stored, "sha256": digests(temporary)})
    assets.write_card(
        temporary, folder.name, version, spec, model_dir.run_directory(Path(model)), stored
    )
    for path in (p for p in temporary.rglob("*") if p.is_file()):
        with open(path, "rb") as f:
            os.fsync(f.fileno())  # the name must not survive a power cut without the content
    buckets.publish_tree(folder / str(version), temporary)
    os.replace(temporary, folder / str(version))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turns warnings off.

    Saving tells at length that it renames the inputs of inner functions, which nobody calls by
    name.
    """
    verbosity, level = absl_logging.get_verbosity(), tf.get_logger().level
    absl_logging.set_verbosity(absl_logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tf.get_logger().setLevel(level)


def _find_version(folder: Path, origin: dict[str, Any]) -> tuple[int | None, int]:
    """Returns the latest version that is an export of `origin`, or None; and the newest of all.

    The newest is 0 where there is none. The two are equal if an earlier run was done, or was killed
    between the rename and `summary.json`.
    """
    numbers = versions(folder) if folder.is_dir() else []
    for number in reversed(numbers):
        path = folder / str(number) / EXPORT
        if path.exists() and origin.items() <= read_json(path, dict).items():
            return number, numbers[-1]
    return None, max(numbers, default=0)


def describe(path: str | Path) -> dict[str, Any]:
    """Reads the signatures of a SavedModel from its file.

    Signature -> {"inputs": …, "outputs": …}, each name -> {"dtype", "shape"} (None: any size).
    """
    saved = saved_model_pb2.SavedModel.FromString((Path(path) / SAVED_MODEL).read_bytes())

    def tensors(infos: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {
                "dtype": tf.dtypes.as_dtype(info.dtype).name,
                "shape": tf.TensorShape(info.tensor_shape).as_list(),
            }
            for name, info in sorted(infos.items())
        }

    signatures = saved.meta_graphs[0].signature_def
    return {
        name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
        for name, signature in sorted(signatures.items())
        if not name.startswith("__")  # TensorFlow's own
    }
