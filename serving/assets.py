"""Files beside the SavedModel of an exported version: its `assets.extra/` and `MODEL_CARD.md`.

They are written with a version, or added to it later.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli.files import atomic_path, file_digest
from cli.json_files import read_json, write_json
from cli.work_dirs import fingerprint
from data.preprocessing import Preprocessing
from serving import card, neighbors, onnx_file, preprocess, probes
from serving.versions import CARD, EXPORT
from training import model_dir
from training.model_dir import ModelSpec

LICENSE = (
    "Not stated: say it with `run_export.sh --license=…`. (The code that trained and exported the"
    " model is under Apache-2.0.)"
)

EVALUATION = {"split": (str, None), "examples": (int, None)}
STORED = {
    "weights": str,
    "optimize": bool,
    "max_pixels": int,
    "deviation": float,
    "deviation_images": int,
    "evaluation?": ({**EVALUATION, "metrics": dict}, None),
    "license?": str,
    "onnx?": ({"opset": int, "deviation": float}, None),
    "neighbors?": ({"images": int, "data": str}, None),
    "sha256?": dict,
}
"""Fields that `export.json` holds at least."""


def write_preprocessing(extra: Path, preprocessing: Preprocessing) -> None:
    """Writes `preprocessing.json` and `preprocess.py`: how pixels reach the network."""
    write_json(extra / "preprocessing.json", onnx_file.describe(preprocessing))
    with atomic_path(extra / "preprocess.py") as temporary:
        shutil.copyfile(preprocess.__file__, temporary)


def write_onnx(
    extra: Path, network: tf.keras.Model, spec: ModelSpec, stored: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `model.onnx` and returns its entry in `export.json`.

    Raises InputError where it answers differently.
    """
    _, images = probes.images(spec.preprocessing)
    metadata = onnx_file.metadata(spec, stored["license"], stored["model"])
    found = onnx_file.write(
        extra / onnx_file.FILE, network, spec, metadata, stored["weights"], images.numpy()
    )
    print(
        f"{onnx_file.FILE} has opset {onnx_file.OPSET}; its probabilities differ from the trained"
        f" model's by at most {found:.2g}"
    )
    return {"opset": onnx_file.OPSET, "deviation": found}


def add_onnx(path: Path, model: str) -> None:
    """Adds `model.onnx` to the version in `path`, an export of `model`, where it has none."""
    stored = read_json(path / EXPORT, STORED)
    if stored.get("onnx"):
        return
    extra, (network, spec) = (path / EXPORT).parent, model_dir.load(model)
    stored = {"evaluation": None, "license": LICENSE, **stored}
    stored["onnx"] = write_onnx(extra, network, spec, stored)
    # After the check, since it may change files with digests.
    write_preprocessing(extra, spec.preprocessing)
    write_card(
        path, path.parent.name, int(path.name), spec, model_dir.run_directory(Path(model)), stored
    )
    write_json(
        path / EXPORT,
        _with_digests(path, stored, onnx_file.FILE, "preprocessing.json", "preprocess.py"),
    )
    print(f"added {extra / onnx_file.FILE}")


def add_neighbors(path: Path, model: str, data: str) -> None:
    """Adds the index of labeled images of `data` to the version in `path`, where it is not there.

    Raises InputError where `data` cannot be used.
    """
    stored, spec = read_json(path / EXPORT, STORED), model_dir.read_spec(model)
    if (stored.get("neighbors") or {}).get("data") == fingerprint(data):
        return
    stored = {"evaluation": None, "license": LICENSE, **stored}
    stored["neighbors"] = neighbors.write_index(path, data, spec.label_names)
    write_card(
        path, path.parent.name, int(path.name), spec, model_dir.run_directory(Path(model)), stored
    )
    write_json(path / EXPORT, _with_digests(path, stored, neighbors.FILE))
    print(f"added {(path / EXPORT).parent / neighbors.FILE}")


def tell(path: Path, spec: ModelSpec, run: Path, told: Mapping[str, Any]) -> bool:
    """Puts what is new in `told` into the card of the version in `path`.

    Returns whether anything was new.
    """
    before = read_json(path / EXPORT, STORED)
    if told.items() <= before.items():
        return False
    stored = {"evaluation": None, "license": LICENSE, **before, **told}
    write_card(path, path.parent.name, int(path.name), spec, run, stored)
    if stored.get("onnx") and "license" in told:
        onnx_file.set_license((path / EXPORT).parent / onnx_file.FILE, stored["license"])
        stored = _with_digests(path, stored, onnx_file.FILE)
    write_json(path / EXPORT, stored)
    return True


def write_card(
    directory: Path, name: str, version: int, spec: ModelSpec, run: Path, stored: Mapping[str, Any]
) -> None:
    """Writes `MODEL_CARD.md` of a version, see `serving.card`; `run` is the training directory."""
    with atomic_path(directory / CARD) as temporary:
        training = read_json(run / "summary.json", card.TRAINING)
        temporary.write_text(card.text(name, version, spec, training, stored), encoding="utf-8")


def _with_digests(path: Path, stored: dict[str, Any], *names: str) -> dict[str, Any]:
    """Returns `stored` with the digests of these files of `assets.extra/` as they are now."""
    extra = (path / EXPORT).parent
    new = {f"{extra.name}/{name}": file_digest(extra / name) for name in names}
    return {**stored, "sha256": {**stored.get("sha256", {}), **new}}
