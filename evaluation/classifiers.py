"""Opens whatever can be evaluated: trained or imported `model/` directories, and SavedModels.

A `Candidate` describes a model that is not loaded (its classes and its preprocessing).
`Candidate.load` makes a `Classifier` of it.

SavedModels of `run_export.sh` are called through their signature `predict_images`. Other
SavedModels must map one float32 [N, S, S, 3] in 0–255, S fixed, to [N, K] logits or probabilities.
They carry no label names, so the label names of the data count as theirs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from cli.errors import InputError, one_line
from cli.json_files import read_json
from cli.work_dirs import fingerprint
from data.preprocessing import Preprocessing
from serving import versions
from training import model_dir
from training.copies import Copies, Device, on, on_each


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A loaded model.

    Attributes:
      name: name of the model, for tables and directories.
      preprocessing: how its images become pixels.
      logits: float32 [B, S, S, 3] in 0–255 -> float32 [B, K]; the answer is their softmax. It runs
        in inference mode (BatchNorm with its moving statistics, no dropout) and is differentiable.
      copies: (device, `logits` function on it) of all devices, where there are several; `logits`
        is the first.
    """

    name: str
    preprocessing: Preprocessing
    logits: Callable[[tf.Tensor], tf.Tensor]
    copies: Sequence[tuple[Device, Callable[[tf.Tensor], tf.Tensor]]] = ()

    def everywhere(
        self, make: Callable[[Callable[[tf.Tensor], tf.Tensor]], Callable[..., Any]]
    ) -> Copies:
        """Returns `make(logits)` of each device's logits, as one function for all devices."""
        copies: list[tuple[Device, Callable[..., Any]]] = []
        for device, logits in self.copies or [(None, self.logits)]:
            with on(device):
                copies.append((device, make(logits)))
        return Copies(copies)

    @property
    def network(self) -> tf.keras.Model | None:
        """The Keras model behind `logits`; None for a SavedModel and for the linear probe."""
        return getattr(self.logits, "network", None)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model to evaluate.

    Attributes:
      name: unique among the candidates that are evaluated together.
      directory: directory as the user gave it.
      preprocessing: how its images become pixels.
      label_names: its classes; empty where a SavedModel does not say.
      digest: digest of what is evaluated; another model in the same place has another digest.
      trained_at: image size of the model that a fine-tuning began with; None where there was no
        fine-tuning.
      load_logits: see `load`.
    """

    name: str
    directory: Path
    preprocessing: Preprocessing
    label_names: tuple[str, ...]
    digest: str
    trained_at: int | None
    load_logits: Callable[[], Callable[[tf.Tensor], tf.Tensor]]

    @property
    def finetuned(self) -> bool:
        """Whether it was fine-tuned at a larger resolution than it was trained at."""
        return self.trained_at is not None and self.trained_at < self.preprocessing.image_size

    def load(self, devices: Sequence[Device] = (None,)) -> Classifier:
        """Builds the model on each device and reads its weights. Raises InputError."""
        copies = on_each(devices, self.load_logits)
        return Classifier(self.name, self.preprocessing, copies[0][1], copies)


def open_candidate(name: str, directory: Path, style: str) -> Candidate:
    """Describes a model without loading it.

    Args:
      name: name to give it.
      directory: directory of a training stage, its `model/`, or a SavedModel (or the directory of
        its numbered versions, or a SERVING_DIR).
      style: style of preprocessing, for a SavedModel that does not say.

    Raises:
      InputError: there is no such model, or it is unfinished.
    """
    saved = versions.find(directory)
    if saved is not None:
        return _open_saved_model(name, directory, saved, style)
    spec = model_dir.read_spec(directory)
    run = model_dir.run_directory(directory)

    def load() -> Callable[[tf.Tensor], tf.Tensor]:
        model, _ = model_dir.load(directory)

        def logits(images: tf.Tensor) -> tf.Tensor:
            return model(images, training=False)

        logits.network = model  # type: ignore[attr-defined]
        return logits

    return Candidate(
        name,
        directory,
        spec.preprocessing,
        tuple(spec.label_names),
        fingerprint(run),
        spec.metadata.get("init_image_size"),
        load,
    )


def _open_saved_model(name: str, directory: Path, saved: Path, style: str) -> Candidate:
    digest = hashlib.sha256((saved / versions.SAVED_MODEL).read_bytes())
    for index in sorted(
        (saved / "variables").glob("*.index")
    ):  # it holds a checksum of every variable
        digest.update(index.read_bytes())
    extra = saved / "assets.extra"
    if (extra / "export.json").exists():
        schema = {"preprocessing": model_dir.PREPROCESSING}
        try:
            preprocessing = Preprocessing.from_dict(
                read_json(extra / "export.json", schema)["preprocessing"]
            )
            names = tuple((extra / "labels.txt").read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError, TypeError) as error:
            reason = one_line(error)
            raise InputError(
                f"{extra} is damaged ({reason}); export the model again with run_export.sh"
            ) from error
        if not names:
            raise InputError(
                f"{extra}/labels.txt names no class; export the model again with run_export.sh"
            )
        return Candidate(
            name,
            directory,
            preprocessing,
            names,
            digest.hexdigest()[:16],
            None,
            lambda: _exported_logits(saved, preprocessing),
        )
    size = _foreign_image_size(saved)
    preprocessing = Preprocessing(image_size=size, style=style)
    return Candidate(
        name,
        directory,
        preprocessing,
        (),
        digest.hexdigest()[:16],
        None,
        lambda: _foreign_logits(saved),
    )


def _exported_logits(saved: Path, preprocessing: Preprocessing) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the logits of a model of `run_export.sh`, for images that are already prepared.

    Such a model crops and resizes images itself. So each image gets a border for it to cut off.
    """
    loaded = versions.load(saved)
    if "predict_images" not in loaded.signatures:
        raise InputError(
            f"{saved} has no signature predict_images; export the model again with run_export.sh"
        )
    signature = loaded.signatures["predict_images"]
    padding = preprocessing.crop_padding if preprocessing.style == "imagenet" else 0
    borders = [
        (padding + 1) // 2,
        padding // 2,
    ]  # `central_box` leaves the odd pixel above and to the left

    def logits(images: tf.Tensor) -> tf.Tensor:
        padded = tf.pad(images, [[0, 0], borders, borders, [0, 0]])
        probabilities = signature(images=padded)["probabilities"]  # (B, K)
        return _log(probabilities)

    # The variables live as long as the object that was loaded.
    logits.keep = loaded  # type: ignore[attr-defined]
    return logits


def _log(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(probabilities, 1e-30))


def _signature(loaded: Any, saved: Path) -> tuple[Any, str, tf.TensorSpec, str]:
    """Returns (function, input name, input spec, output name) of a third-party SavedModel."""
    signatures: Mapping[str, Any] = loaded.signatures
    wanted = (
        "takes no single float32 [N, S, S, 3] to one [N, K] in its signature serving_default;"
        " export it so"
    )
    if "serving_default" not in signatures:
        raise InputError(f"{saved} {wanted}")
    function = signatures["serving_default"]
    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(f"{saved} {wanted}")
    (name, spec), (output, result) = next(iter(inputs.items())), next(iter(outputs.items()))
    square = (
        spec.shape.rank == 4
        and spec.shape[1] is not None
        and spec.shape[1] == spec.shape[2]
        and spec.shape[3] == 3
    )
    if spec.dtype != tf.float32 or not square or result.shape.rank != 2:
        raise InputError(f"{saved} {wanted}")
    return function, name, spec, output


def _foreign_image_size(saved: Path) -> int:
    return int(_signature(versions.load(saved), saved)[2].shape[1])


def _foreign_logits(saved: Path) -> Callable[[tf.Tensor], tf.Tensor]:
    loaded = versions.load(saved)
    function, name, spec, output = _signature(loaded, saved)
    probe = function(**{name: tf.zeros([spec.shape[0] or 1, *spec.shape[1:]])})[output]  # (N, K)
    probabilities = bool(tf.reduce_all(probe >= 0)) and bool(
        tf.reduce_all(tf.abs(tf.reduce_sum(probe, axis=1) - 1) < 1e-3)
    )

    def logits(images: tf.Tensor) -> tf.Tensor:
        values = tf.cast(function(**{name: images})[output], tf.float32)  # (B, K)
        return _log(values) if probabilities else values

    logits.keep = loaded  # type: ignore[attr-defined]
    return logits
