"""Index of labeled images beside an exported version: `run_export.sh --neighbors=DATA`.

    assets.extra/neighbors.npz   embeddings, classes, keys and thumbnails of labeled images

The page of the development server shows which of them look to the network like a new image. The
file holds names of people's images and copies of up to 96 pixels. So an export has none unless it
is asked for.
"""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from cli.errors import InputError, one_line
from cli.files import atomic_path
from cli.progress import progress
from cli.work_dirs import fingerprint, require_finished
from data.preprocessing import decode
from data.records import Manifest, read_manifest, require_same_classes
from serving import versions
from serving.answers import OK
from serving.lite import labeled_examples

FILE = "neighbors.npz"
MOST = 2_000
"""Images in an index, at most."""
SEED = 0
"""Seed of the draw where there are more labeled images than `MOST`."""
SIDE = 96
"""Longer side of a thumbnail in pixels, at most."""
BATCH = 32


class Index(NamedTuple):
    """N labeled images.

    Attributes:
      embeddings: float32 [N, C]; each row has the length 1, or is 0.
      labels: names of their classes.
      keys: their keys in the records.
      thumbnails: JPEG files.
    """

    embeddings: np.ndarray
    labels: Sequence[str]
    keys: Sequence[str]
    thumbnails: Sequence[bytes]


class Neighbor(NamedTuple):
    """A labeled image, and the cosine similarity of its embedding, −1 to 1."""

    label: str
    key: str
    similarity: float
    thumbnail: bytes


def nearest(index: Index, embedding: np.ndarray, count: int) -> list[Neighbor]:
    """Returns the `count` images with the largest cosine similarity to an embedding, best first.

    Args:
      index: images to choose from.
      embedding: float32 [C].
      count: images to return; all, if the index has fewer.
    """
    similarity = index.embeddings @ _unit(embedding)  # (N,)
    best = np.argsort(-similarity, kind="stable")[:count]
    return [
        Neighbor(index.labels[i], index.keys[i], float(similarity[i]), index.thumbnails[i])
        for i in best
    ]


def open_labeled(data: str, names: Sequence[str]) -> Manifest:
    """Opens the split `labeled` of the data directory `data`, for a model with the classes `names`.

    Raises InputError: it is missing, unfinished or of other classes.
    """
    require_finished(data, "data directory", "run_prepare_data.sh")
    manifest = read_manifest(Path(data) / "labeled", "labeled")
    require_same_classes(names, "the model", manifest.label_names, str(manifest.directory))
    return manifest


def write_index(version: Path, data: str, names: Sequence[str]) -> dict[str, Any]:
    """Writes the index of an exported version from the split `labeled` of a data directory.

    Args:
      version: directory of the SavedModel.
      data: finished directory of run_prepare_data.sh.
      names: classes of the model, in order.

    Returns:
      The entry in `export.json`: `images`, `seed`, and `data`, the fingerprint of `data`.

    Raises:
      InputError: `data` is missing, unfinished, damaged or of other classes; or the model decodes
        none of its images. No file is left.
    """
    manifest = open_labeled(data, names)
    embed = versions.load(version).signatures["embed"]
    drawn = _draw(manifest.num_records)
    embeddings, labels, keys, thumbnails = [], [], [], []
    examples = iter(
        progress(labeled_examples(manifest, frozenset(drawn)), len(drawn), "nearest images")
    )
    while batch := [example for _, example in itertools.islice(examples, BATCH)]:
        answer = embed(image_bytes=tf.stack([example["image/encoded"] for example in batch]))
        good = answer["status"].numpy() == OK
        embeddings.append(_unit(answer["embedding"].numpy()[good]))
        for example in itertools.compress(batch, good):
            labels.append(names[int(example["label"])])
            keys.append(example["image/key"].numpy().decode("utf-8", "replace"))
            thumbnails.append(_thumbnail(example["image/encoded"]))
    if not keys:
        raise InputError(f"--neighbors: the model decodes no image of {manifest.directory}")
    with atomic_path(version / "assets.extra" / FILE) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            embeddings=np.concatenate(embeddings).astype(np.float16),
            labels=np.array(labels),
            keys=np.array(keys),
            thumbnails=np.frombuffer(b"".join(thumbnails), np.uint8),
            ends=np.cumsum([len(one) for one in thumbnails]),
        )
    draw = f"; drawn from {manifest.num_records:,} by the seed {SEED}" if len(drawn) == MOST else ""
    print(
        f"{FILE} holds thumbnails and names of {len(keys):,} labeled images{draw}. Whoever gets the"
        " export gets them, too."
    )
    return {"images": len(keys), "seed": SEED, "data": fingerprint(data)}


def read_index(version: Path) -> Index | None:
    """Returns the index of a version; None if it has none. Raises InputError if it is damaged."""
    path = version / "assets.extra" / FILE
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return _read(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _read(path: Path, size: int, time: int) -> Index:
    """Reads an index; its size and time only tell a new file from the one before."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            ends = stored["ends"].tolist()
            content, embeddings = stored["thumbnails"].tobytes(), stored["embeddings"]
            labels, keys = stored["labels"].tolist(), stored["keys"].tolist()
        if embeddings.ndim != 2 or not len(embeddings) == len(ends) == len(labels) == len(keys):
            raise ValueError("its arrays have different lengths")
    except Exception as error:  # a damaged archive raises whatever its reader meets
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); delete it and run run_export.sh"
            " --neighbors again"
        ) from error
    thumbnails = [content[start:end] for start, end in zip([0, *ends], ends)]
    return Index(_unit(embeddings.astype(np.float32)), labels, keys, thumbnails)


def _draw(count: int) -> list[int]:
    """Returns which of `count` records stand in an index: all, or `MOST` by the seed."""
    if count <= MOST:
        return list(range(count))
    generator = np.random.Generator(np.random.PCG64([SEED]))
    return sorted(generator.choice(count, MOST, replace=False).tolist())


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., C] divided by their lengths; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def _thumbnail(encoded: tf.Tensor) -> bytes:
    """Returns a JPEG of at most `SIDE` pixels, without the metadata of the image file."""
    image, buffer = PIL.Image.fromarray(decode(encoded).numpy()), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
