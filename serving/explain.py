"""Explains an answer of an exported classifier: what in the image it depends on, and what is near.

`POST /v1/models/NAME:explain` of the development server takes images as `:predict` does. For each
it gives

- a map of occlusion (Zeiler and Fergus 2014, arXiv:1311.2901): how far the probability of the most
  probable class falls when a gray square covers a place;
- the labeled images with the nearest embeddings, if the export has them (`serving.neighbors`).
"""

from __future__ import annotations

import base64
import functools
import io
import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import PIL.Image
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import read_json
from data.preprocessing import Preprocessing
from serving import neighbors
from serving.answers import OK
from serving.batching import Arrays
from serving.images import prepare
from serving.loading import Version
from serving.refused import Refused
from serving.versions import EXPORT

PLACES = 7
"""Places of the gray square along each side."""
GRAY = 127.5
"""Value of the square's pixels, in 0–255."""
NEAREST = 6
"""Labeled images that are named, at most."""
MOST_IMAGES = 4
"""Images in a request, at most."""
MOST_WAITING = 8
"""Requests that may wait for an explanation; one is computed at a time."""
BATCH_PIXELS = 2**22
"""Pixels of the images that are computed at a time: all 50 of up to 289 pixels a side."""

_DESCRIBED = {"preprocessing": dict, "max_pixels": int}


class Explainer:
    """Computes explanations one at a time, in a thread of its own."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "explanations")
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def submit(self, version: Version, inputs: Arrays) -> Future[str]:
        """Returns the future answer to the inputs of a predict request; see `answer`.

        Raises Refused: other inputs than encoded images, too many, or too many requests wait.
        """
        images = inputs.get("image_bytes")
        if images is None or images.ndim != 1 or len(images) > MOST_IMAGES:
            message = f":explain takes image_bytes, a list of at most {MOST_IMAGES} images"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message)
        if not self._waiting.acquire(blocking=False):
            message = f"{MOST_WAITING} requests for explanations wait already; ask again later"
            raise Refused(grpc.StatusCode.UNAVAILABLE, message)
        future = self._executor.submit(answer, version, list(images))
        future.add_done_callback(lambda _: self._waiting.release())
        return future


def answer(version: Version, images: list[bytes]) -> str:
    """Returns {"explanations": [...]} as JSON, an entry of `explain` for each encoded image.

    Raises Refused: the version cannot be asked, or gives numbers that are not finite.
    """
    try:
        return json.dumps(
            {"explanations": [explain(version, image) for image in images]}, allow_nan=False
        )
    except InputError as error:
        message = "a file of the version cannot be read; the server's stderr says more"
        print(f"note: {error}", file=sys.stderr, flush=True)
        raise Refused(grpc.StatusCode.INTERNAL, message) from error
    except ValueError as error:
        message = "the explanation holds NaN or infinity"
        raise Refused(grpc.StatusCode.INTERNAL, message) from error


def explain(version: Version, encoded: bytes) -> dict[str, Any]:
    """Explains the answer to one encoded image.

    Returns:
      `status`, as of a prediction; of an image with another status than OK nothing else. `version`;
      `label` and `probability` of the most probable class; `prepared`, the pixels that the network
      sees, as base64 of a PNG; `drops`, see `occlusion`; `neighbors`, None or the nearest labeled
      images, each with `label`, `key`, `similarity` and `thumbnail`, base64 of a JPEG.

    Raises:
      Refused: the version lacks a signature.
      InputError: a file of the version is missing or damaged.
    """
    image_bytes = np.array([encoded], dtype=object)
    top = _compute(version, "serving_default", image_bytes=image_bytes)
    features = _compute(version, "embed", image_bytes=image_bytes)
    statuses = int(top["status"][0]), int(features["status"][0])
    if statuses != (OK, OK):
        return {"status": max(statuses)}
    described = read_json(version.path / EXPORT, _DESCRIBED)
    prepared = _preparation(
        Preprocessing.from_dict(described["preprocessing"]), described["max_pixels"]
    )(tf.constant([encoded]))[0].numpy()

    def predict(images: np.ndarray) -> np.ndarray:
        return _compute(version, "predict_prepared", images=images)["probabilities"]

    number = int(top["classes"][0, 0])
    index = neighbors.read_index(version.path)
    found = index and neighbors.nearest(index, features["embedding"][0], NEAREST)
    return {
        "status": OK,
        "version": version.number,
        "label": top["labels"][0, 0].decode("utf-8", "replace"),
        "probability": float(top["probabilities"][0, number]),
        "prepared": _base64(_png(prepared[0])),
        "drops": occlusion(predict, prepared[0], number).tolist(),
        "neighbors": found
        and [{**one._asdict(), "thumbnail": _base64(one.thumbnail)} for one in found],
    }


def occlusion(
    predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, number: int
) -> np.ndarray:
    """Measures how far a class's probability falls when a gray square covers a place.

    Args:
      predict: prepared images float32 [N, S, S, 3] -> probabilities [N, K]. The image and its
        covered copies come in one batch, or in several if they are large.
      image: prepared image, float32 [S, S, 3] in 0–255.
      number: the class.

    Returns:
      float64 [P, P], P = `PLACES`: the probability without the square minus that with it, −1 to 1.
      Rows go from top to bottom.
    """
    images = np.concatenate([image[np.newaxis], covered(image)])  # (1 + P * P, S, S, 3)
    step = max(1, BATCH_PIXELS // image[..., 0].size)
    probabilities = np.concatenate(
        [predict(images[i : i + step])[:, number] for i in range(0, len(images), step)]
    ).astype(np.float64)
    return (probabilities[0] - probabilities[1:]).reshape(PLACES, PLACES)


def covered(image: np.ndarray) -> np.ndarray:
    """Returns copies of an image, each with a gray square in another place.

    The image is parted into P × P cells, P = `PLACES`. A square has a cell's center and twice its
    side, and ends at the image's edge.

    Args:
      image: float32 [S, S, 3].

    Returns:
      float32 [P * P, S, S, 3], row by row.
    """
    side = len(image)
    starts = [max(0, round((place - 0.5) * side / PLACES)) for place in range(PLACES)]
    ends = [min(side, round((place + 1.5) * side / PLACES)) for place in range(PLACES)]
    copies = np.repeat(image[np.newaxis], PLACES * PLACES, axis=0)
    for row in range(PLACES):
        for column in range(PLACES):
            copy = copies[row * PLACES + column]
            copy[starts[row] : ends[row], starts[column] : ends[column]] = GRAY
    return copies


def _compute(version: Version, name: str, **inputs: np.ndarray) -> Arrays:
    """Computes a signature outside of the queue, so that an explanation holds up no prediction."""
    if name not in version.signatures:
        message = f"the model has no signature {name}; export it again with run_export.sh"
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message)
    return version.signatures[name].work.compute(inputs)


@functools.lru_cache(maxsize=8)
def _preparation(preprocessing: Preprocessing, max_pixels: int) -> Any:
    """Returns the exported graph's own preparation: bytes [N] -> float32 [N, S, S, 3], status."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def function(image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return prepare(image_bytes, preprocessing, max_pixels)

    return function


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
