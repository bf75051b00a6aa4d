"""The `model/` directory: what one stage leaves for the next.

`model.json` says how to build the model and how to prepare its images. `model.weights.h5` holds the
weights to use: the averaged ones if the run kept an average. `model.json` states the SHA-256 of the
weights, which `load` verifies.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import h5py
import tensorflow as tf

from cli.errors import InputError, one_line
from cli.files import atomic_path, file_digest, remove_temporaries
from cli.json_files import read_json, write_json
from cli.work_dirs import MODEL, WEIGHTS, WEIGHTS_DIGEST, require_finished, verify_weights
from data.preprocessing import Preprocessing
from efficientnet.architectures import SMALL_IMAGE_STRIDES
from training import architectures, models
from training.hdf5 import datasets
from training.writes import writing

MADE_BY = "run_train.sh, run_teacher.sh, run_student.sh or run_meta_pseudo_labels.sh"
"""The stages that leave a model directory."""


PREPROCESSING = {
    "image_size": int,
    **dict.fromkeys(("style?", "randaugment_table?", "randaugment_mode?"), str),
    **dict.fromkeys(("mean?", "std?"), [float] * 3),
    **dict.fromkeys(("pad?", "randaugment_layers?", "extra_cutout?", "crop_padding?"), int),
    **dict.fromkeys(("randaugment_magnitude?", "translate_const?", "cutout_const?"), float),
    "flip?": bool,
    "randaugment_ops?": [str],
}
"""The types of what `Preprocessing.to_dict` returns."""

DESCRIPTION = {
    "architecture": {"name": str},
    "preprocessing": PREPROCESSING,
    "label_names": [str],
    "metadata": {"init_image_size?": (int, None)},
}
"""Fields that `model.json` has at least."""


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything that is needed to use a trained classifier, except its weights."""

    architecture: dict[str, Any]
    preprocessing: Preprocessing
    label_names: tuple[str, ...]
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Returns K, the number of classes."""
        return len(self.label_names)

    def build(self, seed: int = 0, sync_batch_norm: bool = False) -> tf.keras.Model:
        """Builds the model with fresh weights: float32 (B, S, S, 3) in 0–255 -> logits (B, K)."""
        mean, std = self.preprocessing.mean, self.preprocessing.std
        return models.build(
            self.architecture,
            self.num_classes,
            mean=mean,
            std=std,
            seed=seed,
            sync_batch_norm=sync_batch_norm,
            image_size=self.preprocessing.image_size,
        )


def save(directory: str | Path, model: tf.keras.Model, spec: ModelSpec) -> None:
    """Writes `directory`. Raises InputError if it cannot be written.

    Writes `model.json` last, so that a directory with this file is complete.
    """
    directory = Path(directory)
    description = {
        "architecture": spec.architecture,
        "preprocessing": spec.preprocessing.to_dict(),
        "label_names": list(spec.label_names),
        "metadata": spec.metadata,
    }
    with writing("the model", directory):
        directory.mkdir(parents=True, exist_ok=True)
        remove_temporaries(directory)
        with atomic_path(directory / WEIGHTS) as temporary:
            # Keras insists on this ending.
            named = temporary.with_name(f"{temporary.name}.weights.h5")
            try:
                model.save_weights(named)
                named.rename(temporary)
            finally:
                named.unlink(missing_ok=True)
        write_json(
            directory / MODEL, {**description, WEIGHTS_DIGEST: file_digest(directory / WEIGHTS)}
        )


def read_spec(directory: str | Path, made_by: str = MADE_BY) -> ModelSpec:
    """Returns the spec of a finished training directory, or of a `model/` directory.

    Raises:
      InputError: the directory is missing, unfinished or damaged.
    """
    path = _locate(Path(directory), made_by) / MODEL
    architecture = _without_small_images(read_json(path, DESCRIPTION)["architecture"])
    try:
        types = architectures.find(architecture["name"]).types
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    description = read_json(path, {**DESCRIPTION, "architecture": {"name": str, **types}})
    preprocessing = Preprocessing.from_dict(description["preprocessing"])
    return ModelSpec(
        architecture, preprocessing, tuple(description["label_names"]), description["metadata"]
    )


def _without_small_images(architecture: dict[str, Any]) -> dict[str, Any]:
    """Returns `architecture` without `small_images`, a setting of earlier versions.

    The setting was a name for `SMALL_IMAGE_STRIDES`, which take its place.
    """
    kept = {key: value for key, value in architecture.items() if key != "small_images"}
    return (
        {**kept, "strides": list(SMALL_IMAGE_STRIDES)} if architecture.get("small_images") else kept
    )


def load(directory: str | Path, made_by: str = MADE_BY) -> tuple[tf.keras.Model, ModelSpec]:
    """Builds the model and loads its weights.

    Args:
      directory: work directory of a training stage (finished), or its `model/`.
      made_by: the stage that the message names if the model is missing.

    Returns:
      (model mapping float32 (B, S, S, 3) in 0–255 to logits (B, K), its spec).

    Raises:
      InputError: the model is missing or unfinished, or its weights do not fit or are not those
        that `model.json` describes.
    """
    spec = read_spec(directory, made_by)
    path = _locate(Path(directory), made_by) / WEIGHTS
    if not verify_weights(path.parent):
        print(
            f"note: {path} cannot be verified: {MODEL} states no {WEIGHTS_DIGEST}",
            file=sys.stderr,
            flush=True,
        )
    model = spec.build()
    try:
        with h5py.File(path) as file:
            datasets(file)  # Keras would follow a link to another file
        model.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} does not hold the weights of model.json ({one_line(error)}); make it again"
        ) from error
    return model, spec


def run_directory(directory: str | Path) -> Path:
    """Returns the training run's directory, given it or its `model/`."""
    directory = Path(directory)
    inside = directory.name == "model" and not (directory / "summary.json").exists()
    return directory.parent if inside else directory


def _locate(directory: Path, made_by: str) -> Path:
    if (directory / MODEL).exists():
        return directory
    require_finished(directory, "model directory", made_by)
    if not (directory / "model" / MODEL).exists():
        raise InputError(f"{directory} holds no model/model.json; make it with {made_by}")
    return directory / "model"
