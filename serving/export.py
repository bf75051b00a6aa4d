"""The export stage: a trained model as a SavedModel that takes encoded images, as TF Serving loads it.

    python -m serving.export --workdir=W --model=TRAINING_DIRECTORY

leaves in W

    1/                 the SavedModel; a later version gets the next number, and TF Serving takes the highest
    1/assets.extra/    labels.txt (a class a line), export.json (which model this is)
    summary.json       last: `export` (path of the version), `version`, `label_names`, `signatures`

A version is written under a name that is no number and renamed when it is whole, so a server that watches W never sees half
of one. The weights are those that `training.model_dir.load` returns (averaged where the run kept an average), and images
are prepared inside the graph by the very functions that evaluation uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging as absl_logging
from tensorflow.core.protobuf import saved_model_pb2

from data.preprocessing import Preprocessing, central_box, eval_image, resize
from serving.versions import SAVED_MODEL, versions
from stages import app
from stages.errors import InputError
from stages.files import read_json, write_json
from stages.workdir import fingerprint, finish, start
from training import model_dir
from training.model_dir import ModelSpec

TOP_K = 5
_TEMPORARY = ".export.tmp"  # TF Serving looks at numbers only


def main(workdir: str, model: str, arguments: Sequence[str] = ()) -> None:
    """Exports the training directory (or `model/`) `model` into `workdir`; see the module.

    Raises:
      InputError: unusable flags, or a model that is missing or unfinished.
    """
    if arguments:
        raise InputError(f"unexpected argument {arguments[0]!r}; name the model with --model=DIR")
    spec = model_dir.read_spec(model)
    run = model_dir.run_directory(Path(model))
    done = start(workdir, {"stage": "export"}, {"model": run})
    if done is not None:
        print(f"{workdir} is done: the model is in {done['export']}")
        return
    origin = {"model": fingerprint(run), "preprocessing": spec.preprocessing.to_dict()}
    version = _find_version(Path(workdir), origin)
    if version is None:
        version = 1 + max((int(path.name) for path in Path(workdir).iterdir() if path.name.isdecimal()), default=0)
        _write_version(Path(workdir), version, model, origin)
    path = Path(workdir) / str(version)
    summary = {"export": str(path), "version": version, "label_names": list(spec.label_names), "signatures": describe(path)}
    finish(workdir, summary)
    print(f"exported {model} to {path}")


class Classifier(tf.Module):
    """What is saved: the two signatures and the variables that they read.

    Holds the model's variables, not the Keras model: saving would trace every one of its layers for a second time, to no
    use for a server.

    Attributes:
      functions: signature name -> tf.function. Each returns `probabilities` float32 [N, K], `classes` int32 [N, k] (the k = min(5, K)
        most probable classes, best first) and `labels` string [N, k] (their names).
    """

    def __init__(self, model: tf.keras.Model, spec: ModelSpec):
        """Takes the built `model` and how its images are prepared and its classes named."""
        super().__init__(name="classifier")
        self.model_variables = list(model.variables)
        self.functions = _signatures(model, spec)


def _signatures(model: tf.keras.Model, spec: ModelSpec) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    preprocessing, size = spec.preprocessing, spec.preprocessing.image_size
    pixels = tf.TensorSpec([size, size, 3], tf.float32)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model(images, training=False)  # (N, K)
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))  # (N, K)
        classes = tf.math.top_k(probabilities, min(TOP_K, spec.num_classes)).indices  # (N, k)
        labels = tf.gather(tf.constant(spec.label_names), classes)  # (N, k)
        return {"probabilities": probabilities, "classes": classes, "labels": labels}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(tf.map_fn(lambda encoded: eval_image(encoded, preprocessing), image_bytes, fn_output_signature=pixels))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def predict_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(tf.map_fn(lambda image: eval_pixels(image, preprocessing), images, fn_output_signature=pixels))

    return {"serving_default": serving_default, "predict_images": predict_images}


def eval_pixels(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """`data.preprocessing.eval_image` of an image that is decoded already.

    Args:
      image: float32 [H, W, 3] in 0–255, any H and W.
      preprocessing: the model's.

    Returns:
      float32 [S, S, 3], cropped and resized as in evaluation.
    """
    size = preprocessing.image_size
    if preprocessing.style == "imagenet":
        top, left, height, width = tf.unstack(central_box(tf.shape(image), size))
        image = image[top : top + height, left : left + width]
    return resize(image, size)


def _write_version(workdir: Path, version: int, model: str, origin: dict[str, Any]) -> None:
    """Writes `workdir`/`version`: beside it first, then renamed."""
    temporary = workdir / _TEMPORARY
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    network, spec = model_dir.load(model)
    module = Classifier(network, spec)
    with _quiet():
        tf.saved_model.save(module, str(temporary), signatures=module.functions)
    extra = temporary / "assets.extra"
    extra.mkdir()
    (extra / "labels.txt").write_text("".join(f"{name}\n" for name in spec.label_names), encoding="utf-8")
    write_json(extra / "export.json", origin)
    for path in (p for p in temporary.rglob("*") if p.is_file()):
        with open(path, "rb") as f:
            os.fsync(f.fileno())  # the name must not survive a power cut without the content
    os.replace(temporary, workdir / str(version))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings off: saving tells at length that it renames the inputs of inner functions, which nobody calls by name."""
    verbosity, level = absl_logging.get_verbosity(), tf.get_logger().level
    absl_logging.set_verbosity(absl_logging.ERROR)
    tf.get_logger().setLevel("ERROR")
    try:
        yield
    finally:
        absl_logging.set_verbosity(verbosity)
        tf.get_logger().setLevel(level)


def _find_version(workdir: Path, origin: dict[str, Any]) -> int | None:
    """The newest version, if it is of `origin` already: a run was killed between the rename and `summary.json`."""
    newest = max(versions(workdir), default=None)
    if newest is None:
        return None
    path = workdir / str(newest) / "assets.extra" / "export.json"
    return newest if path.exists() and read_json(path) == origin else None


def describe(path: str | Path) -> dict[str, Any]:
    """Signature -> {"inputs": …, "outputs": …}, each name -> {"dtype", "shape"} (None: any size), read from a SavedModel's file."""
    saved = saved_model_pb2.SavedModel.FromString((Path(path) / SAVED_MODEL).read_bytes())

    def tensors(infos: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: {"dtype": tf.dtypes.as_dtype(info.dtype).name, "shape": tf.TensorShape(info.tensor_shape).as_list()}
            for name, info in sorted(infos.items())
        }

    signatures = saved.meta_graphs[0].signature_def
    return {
        name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
        for name, signature in sorted(signatures.items())
        if not name.startswith("__")  # TensorFlow's own
    }


if __name__ == "__main__":
    app.run(
        main,
        {"workdir": "Directory to write; TF Serving's model_base_path.", "model": "Finished training directory, or its model/."},
        config=False,
    )
