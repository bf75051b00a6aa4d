"""Finds images worth looking at in the records of a run, and writes a caption for each.

However large the data, no more than `LOOK_AT` records of a split are read, and few images are kept.
"""

from __future__ import annotations

import base64
import heapq
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf

from data import protos
from data.preprocessing import decode
from data.records import Manifest, read_manifest
from data.verification import read_records
from evaluation.examples import Examples

LOOK_AT = 20_000
"""Number of records of a split that are looked through."""
SIDE = 192
"""Largest longer side of a picture, in pixels; the page shows it smaller until enlarged."""
RIGHT, WRONG = "\x01", "\x02"
"""Marks around a right and a wrong answer in a caption: characters that no name has."""
JOIN = "\N{NO-BREAK SPACE}"
"""Space between a number and its percent sign in a narrow caption, where no line may end."""


class Picture(NamedTuple):
    """An image for the page.

    Attributes:
      data: the image as a data URI.
      caption: text below it; a right answer stands between two `RIGHT`, a wrong one between two
        `WRONG`.
      text: what the image shows, for people who cannot see it.
      file: name of the image, as the records have it; "": not known.
    """

    data: str
    caption: str
    text: str
    file: str = ""


def picture(
    image: bytes | np.ndarray, caption: str, text: str | None = None, file: str = ""
) -> Picture:
    """Makes a picture from an image file or uint8 [H, W, 3]; `file` is its name."""
    pixels = decode(tf.constant(image)).numpy() if isinstance(image, bytes) else image
    drawn = PIL.Image.fromarray(pixels)
    if max(drawn.size) > SIDE:
        drawn.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small = max(drawn.size) <= 64
    if small and (pixels == pixels[..., :1]).all():
        drawn = drawn.convert("L")
    options: dict[str, Any] = {"optimize": True} if small else {"quality": 80}
    drawn.save(buffer, "PNG" if small else "JPEG", **options)
    data = (
        f"data:image/{'png' if small else 'jpeg'};base64,"
        f"{base64.b64encode(buffer.getvalue()).decode()}"
    )
    return Picture(data, caption, text or plain(caption), file)


def _records(manifest: Manifest) -> Iterator[bytes]:
    """Yields the records to look through; reads and verifies only the shards that hold them."""
    everything = (
        record for shard in range(len(manifest.files)) for record in read_records(manifest, shard)
    )
    return itertools.islice(everything, LOOK_AT)


def _features(manifest: Manifest) -> Iterator[Any]:
    for record in _records(manifest):
        yield tf.train.Example.FromString(record).features.feature


def _key(features: Any, number: int) -> str:
    values = features["image/key"].bytes_list.value if "image/key" in features else []
    return values[0].decode("utf-8") if values and values[0] else f"#{number}"


def by_key(manifest: Manifest, keys: Sequence[str]) -> dict[str, bytes]:
    """Returns key -> image file, for the `keys` that are among the records looked through."""
    wanted, found = set(keys), {}
    for number, features in enumerate(_features(manifest)):
        key = _key(features, number)
        if key in wanted:
            found[key] = features["image/encoded"].bytes_list.value[0]
            if len(found) == len(wanted):
                break
    return found


def most_confident(pseudo_labeled: Path, per_class: int, classes: int) -> dict[str, list[Picture]]:
    """Returns the most confident pseudo-labeled images of each of the first `classes` classes."""
    manifest = read_manifest(pseudo_labeled, "pseudo_labeled")
    best: list[list[tuple[float, str, bytes]]] = [
        [] for _ in range(min(classes, manifest.num_classes))
    ]
    seen: set[str] = set()
    for number, features in enumerate(_features(manifest)):
        label, key = features["label"].int64_list.value[0], _key(features, number)
        if label >= len(best) or key in seen:  # a key comes again where balancing has duplicated it
            continue
        seen.add(key)
        entry = (
            features["prob"].float_list.value[0],
            key,
            features["image/encoded"].bytes_list.value[0],
        )
        (heapq.heappush if len(best[label]) < per_class else heapq.heappushpop)(best[label], entry)
    return {
        manifest.label_names[label]: [
            picture(
                encoded,
                f"{100 * p:.1f} %",
                f"pseudo-label {manifest.label_names[label]}, {100 * p:.1f} %",
                key,
            )
            for p, key, encoded in sorted(entries, reverse=True)
        ]
        for label, entries in enumerate(best)
    }


def filtered_out(predictions: Path, unlabeled: Path, threshold: float, count: int) -> list[Picture]:
    """Returns images that the teacher was too unsure of, the most unsure first."""
    manifest = read_manifest(predictions, "predictions")
    worst: list[
        tuple[float, str, int]
    ] = []  # of the negative confidence, so that the heap drops the most confident
    for record in _records(manifest):
        key, probabilities = protos.read_prediction(record, manifest.num_classes)
        if probabilities.max() <= threshold:
            entry = (-float(probabilities.max()), key, int(probabilities.argmax()))
            (heapq.heappush if len(worst) < count else heapq.heappushpop)(worst, entry)
    images = by_key(read_manifest(unlabeled), [key for _, key, _ in worst])
    names = manifest.label_names
    return [
        picture(
            images[key],
            f"{names[label]} {-100 * p:.0f}{JOIN}%",
            f"filtered out: {names[label]} with {-100 * p:.0f} %",
            key,
        )
        for p, key, label in sorted(worst, reverse=True)
        if key in images
    ]


def out_of_domain(pseudo_labeled: Path, domain: str, count: int) -> list[Picture]:
    """Returns pseudo-labeled images with keys that do not start with `domain`/.

    They passed the threshold and should not have.
    """
    manifest, found, seen = read_manifest(pseudo_labeled, "pseudo_labeled"), [], set()
    for number, features in enumerate(_features(manifest)):
        key = _key(features, number)
        if key.startswith(f"{domain}/") or key in seen:
            continue
        seen.add(key)
        name, p = (
            manifest.label_names[features["label"].int64_list.value[0]],
            features["prob"].float_list.value[0],
        )
        text = f"out of domain, taken for {name} with {100 * p:.0f} %"
        encoded = features["image/encoded"].bytes_list.value[0]
        found.append(picture(encoded, f"{name} {100 * p:.0f}{JOIN}%", text, key))
        if len(found) == count:
            break
    return found


def judged(name: str, answer: int, label: int, label_names: Sequence[str]) -> str:
    """Returns a caption's line: which model gave which answer, marked as right or wrong."""
    return marked(f"{name}: {label_names[answer]}", right=answer == label)


def marked(text: str, right: bool) -> str:
    """Returns `text` between the marks of a right or a wrong answer."""
    mark = RIGHT if right else WRONG
    return f"{mark}{plain(text)}{mark}"


def plain(caption: str) -> str:
    """Returns a caption without marks."""
    return caption.replace(RIGHT, "").replace(WRONG, "")


def disagreements(
    manifest: Manifest,
    first: tuple[str, Mapping[str, np.ndarray]],
    second: tuple[str, Mapping[str, np.ndarray]],
    count: int,
) -> list[Picture]:
    """Returns images that the first model gets wrong and the second right.

    The images come first for which the second model is most confident.
    """
    (first_name, a), (second_name, b) = first, second
    labels, one, other = (
        a["labels"],
        a["probabilities"].argmax(axis=1),
        b["probabilities"].argmax(axis=1),
    )
    places = np.flatnonzero((one != labels) & (other == labels))
    places = places[np.argsort(-b["probabilities"][places].max(axis=1), kind="stable")][:count]
    images = by_key(manifest, [str(a["keys"][i]) for i in places])
    names = manifest.label_names
    return [
        picture(
            images[str(a["keys"][i])],
            f"{judged(first_name, one[i], labels[i], names)}\n"
            f"{judged(second_name, other[i], labels[i], names)}",
            f"{names[labels[i]]}; {first_name} says {names[one[i]]}, {second_name} says"
            f" {names[other[i]]}",
            str(a["keys"][i]),
        )
        for i in places
        if str(a["keys"][i]) in images
    ]


def corrupted(
    sets: Mapping[str, Mapping[int, Examples]],
    severities: Sequence[int],
    answers: Mapping[str, Callable[[str, int], tuple[int, int]]],
    label_names: Sequence[str],
) -> dict[str, list[Picture]]:
    """Returns the first example of every corruption, at some severities.

    `answers`: model -> (corruption, severity) -> (the model's answer, the label).
    """
    rows = {}
    for corruption, by_severity in sets.items():
        row = []
        for severity in severities:
            encoded, key, _ = next(iter(by_severity[severity].stream()))
            lines = [
                judged(name, *ask(corruption, severity), label_names)
                for name, ask in answers.items()
            ]
            title = f"{corruption.replace('_', ' ')}, severity {severity}"
            text = plain(f"{title}; {'; '.join(lines)}")
            row.append(picture(encoded.numpy(), "\n".join(lines), text, _name(key)))
        rows[corruption] = row
    return rows


def frames(
    examples: Examples,
    which: Sequence[int],
    answers: Mapping[str, np.ndarray],
    label: int,
    label_names: Sequence[str],
) -> list[Picture]:
    """Returns frames `which` of the first sequence; `answers`: model -> its answers int [m]."""
    row = []
    for number, (encoded, key, _) in enumerate(examples.stream().take(max(which) + 1)):
        if number in which:
            lines = [
                judged(name, int(given[number]), label, label_names)
                for name, given in answers.items()
            ]
            text = plain(f"frame {number}; {'; '.join(lines)}")
            row.append(picture(encoded.numpy(), "\n".join(lines), text, _name(key)))
    return row


def _name(key: tf.Tensor) -> str:
    return str(key.numpy().decode("utf-8"))
