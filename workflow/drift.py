"""Compares logged requests with reference images, and names the images to label next.

    ./run_tool.sh drift --requests=DIR --reference=photos/labeled --model=SERVING_DIR
        --output=OUTPUT [--ask=20]

The exported model answers both sets: predicted classes, confidence (the largest probability) and
embedding. A request for an image that came before counts again for classes and confidence, and once
for the embedding. Leaves in OUTPUT

    images/            each image of the requests once, an unlabeled pool for the next run
    labels_next.csv    what to label next, for `--labels` of that run
    drift.md           the report
    drift.json         its numbers; last
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import write_json
from cli.progress import progress
from data.records import read_manifest
from evaluation import drift
from serving import predict, request_log, versions
from serving.answers import OK
from serving.inputs import expand
from serving.lite import encoded_examples
from workflow import labels

BATCH = 32
FEWEST = 20
"""Images of each set below which nothing is compared."""
MOST = 10_000
"""Reference images, at most: of more, every second, third, ... is taken."""
LEVEL = 0.01
"""Of MMD's test."""
COLUMNS = ("file", "label", "confidence", "teacher", "ask", "checked")


class Answers(NamedTuple):
    """Answers of a model to N images that it could decode.

    Attributes:
      names: file or number of each.
      probabilities: float32 [N, K].
      embeddings: float32 [N, C].
      bad: images that could not be decoded.
    """

    names: list[str]
    probabilities: np.ndarray
    embeddings: np.ndarray
    bad: int


def main(requests: str, reference: str, model: str, output: str, ask: int = labels.ASK) -> None:
    """Compares the images of logged requests with reference images; see the module.

    Args:
      requests: folder of `run_serve.sh --local --log_requests`.
      reference: what the model was trained on: a folder or list of images, or a split of a data
        directory.
      model: the export.
      output: directory to write.
      ask: most images of a kind to label next.

    Raises:
      InputError: no logs, images or model that can be used; fewer than `FEWEST` images.
    """
    path, folder = versions.require_version(model), Path(output).expanduser().resolve()
    known, many = _reference(reference)
    counts = request_log.collect(requests, str(folder / "images"))
    files = [folder / "images" / name for name in counts]
    network = _Network(path)
    trained = network.answers(known, many, "reference")
    sent = ((str(file), file.read_bytes()) for file in files)
    served = network.answers(sent, len(files), "requests")
    for what, answers in (("--reference", trained), ("--requests", served)):
        if len(answers.names) < FEWEST:
            raise InputError(
                f"{what} has {len(answers.names)} images that can be decoded; at least {FEWEST}"
                " are needed"
            )
    times = np.array([counts[Path(name).name] for name in served.names])
    found = compare(trained, served, times, network.labels)
    asks = _write_next(folder / "labels_next.csv", served, network.labels, ask)
    report = text(found, network.labels, str(path), reference, asks)
    with atomic_path(folder / "drift.md") as temporary:
        temporary.write_text(report, encoding="utf-8")
    write_json(folder / "drift.json", found)
    print(report.split("\n\n")[0])
    print(f"{folder / 'drift.md'}; {asks} images to label next: {folder / 'labels_next.csv'}")


def _reference(location: str) -> tuple[Iterator[tuple[str, bytes]], int]:
    """Returns name and content of the reference images, and their number; at most `MOST`."""
    if (Path(location) / "manifest.json").is_file():
        manifest = read_manifest(Path(location), "labeled")
        every = -(-manifest.num_records // MOST)
        examples = encoded_examples(manifest, max(every, 1))
        images = ((str(number), encoded.numpy()) for number, encoded, _ in examples)
        return images, -(-manifest.num_records // max(every, 1))
    names = expand([location])
    names = names[:: -(-len(names) // MOST)]
    return ((name, predict.read(name)) for name in names), len(names)


class _Network:
    """An exported model.

    Attributes:
      labels: names of its classes.
    """

    def __init__(self, path: Path):
        self._loaded = versions.load(path)
        if not {"serving_default", "embed"} <= self._loaded.signatures.keys():
            raise InputError(
                f"--model: {path} lacks the signature serving_default or embed; export it with"
                " run_export.sh"
            )
        names = path / "assets.extra" / "labels.txt"
        try:
            self.labels = names.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{names} cannot be read; export the model again") from error

    def answers(self, images: Iterable[tuple[str, bytes]], count: int, what: str) -> Answers:
        """Computes the answers to `count` named images, a batch at a time."""
        names: list[str] = []
        probabilities, embeddings, bad = [], [], 0
        images = iter(progress(images, count, what))
        while batch := list(itertools.islice(images, BATCH)):
            encoded = tf.constant([content for _, content in batch])
            answer = self._loaded.signatures["serving_default"](image_bytes=encoded)
            features = self._loaded.signatures["embed"](image_bytes=encoded)
            good = (answer["status"].numpy() == OK) & (features["status"].numpy() == OK)
            names += [name for (name, _), fine in zip(batch, good) if fine]
            probabilities.append(answer["probabilities"].numpy()[good])
            embeddings.append(features["embedding"].numpy()[good])
            bad += int(np.sum(~good))
        if not probabilities:
            return Answers([], np.zeros((0, len(self.labels))), np.zeros((0, 1)), 0)
        return Answers(names, np.concatenate(probabilities), np.concatenate(embeddings), bad)


def compare(
    trained: Answers, served: Answers, times: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """Measures how far the served images are from the reference.

    Args:
      trained: answers to the reference.
      served: answers to the requests' images.
      times: int64 [N], how many times each served image was sent.
      names: of the classes.

    Returns:
      What `drift.json` holds.
    """
    kinds = len(names)
    of_reference = np.bincount(trained.probabilities.argmax(axis=1), minlength=kinds)
    of_served = np.bincount(served.probabilities.argmax(axis=1), times, kinds).astype(np.int64)
    sure = trained.probabilities.max(axis=1), np.repeat(served.probabilities.max(axis=1), times)
    moved = drift.mmd(trained.embeddings, served.embeddings)
    return {
        "reference": {"images": len(trained.names), "undecodable": trained.bad},
        "requests": {
            "images": len(served.names),
            "undecodable": served.bad,
            "answers": int(times.sum()),
        },
        "classes": {
            "reference": of_reference.tolist(),
            "requests": of_served.tolist(),
            "psi": drift.psi(of_reference, of_served),
        },
        "confidence": {
            "reference": float(sure[0].mean()),
            "requests": float(sure[1].mean()),
            "psi": drift.psi(*drift.deciles(*sure)),
        },
        "embedding": {"mmd2": moved.squared, "p": moved.p, "bandwidth": moved.bandwidth},
    }


def _write_next(path: Path, served: Answers, names: list[str], ask: int) -> int:
    """Writes the images to label next, and returns how many there are."""
    order = np.sort(served.probabilities, axis=1)[:, ::-1]
    predicted = served.probabilities.argmax(axis=1)
    second = order[:, 1] if order.shape[1] > 1 else np.zeros(len(order))
    seen = [
        labels.ImageAnswers(
            name,
            "unlabeled",
            int(label),
            float(first),
            0,
            "",
            -1,
            -1,
            int(label),
            float(first),
            float(margin),
        )
        for name, label, first, margin in zip(
            served.names, predicted, order[:, 0], order[:, 0] - second
        )
    ]
    asks = labels.choose(seen, ask)
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for place, kind in asks.items():
        one = seen[place]
        # `teacher` lets a reader tell the model's answer from a person's label (data.corrections).
        label = names[one.label]
        writer.writerow([one.key, label, f"{one.first:.6f}", label, kind, ""])
    with atomic_path(path) as temporary:
        temporary.write_text(content.getvalue(), encoding="utf-8")
    return len(asks)


def text(found: dict[str, Any], names: list[str], model: str, reference: str, asks: int) -> str:
    """Returns the report in Markdown; its first paragraph is the verdict."""
    classes, sure, embedding = found["classes"], found["confidence"], found["embedding"]
    moved = embedding["p"] < LEVEL
    sent, known = found["requests"], found["reference"]
    verdict = (
        f"The served images {'differ' if moved else 'do not differ detectably'} from the reference:"
        f" MMD² of the embeddings {embedding['mmd2']:.4f}, p {embedding['p']:.3f} (level"
        f" {LEVEL:g}); PSI of the predicted classes {classes['psi']:.3f}, of the confidence"
        f" {sure['psi']:.3f}."
    )
    total = sum(classes["reference"]), sum(classes["requests"])
    order = np.argsort(classes["requests"])[::-1]
    rows = [
        f"| {names[k]} | {100 * classes['reference'][k] / total[0]:.2f} |"
        f" {100 * classes['requests'][k] / total[1]:.2f} |"
        for k in order
    ]
    return "\n".join(
        [
            verdict,
            "",
            f"Model: {model}. Reference: {reference}, {known['images']:,} images,"
            f" {known['undecodable']:,} that cannot be decoded. Requests: {sent['answers']:,}"
            f" answers to {sent['images']:,} images, {sent['undecodable']:,} that cannot be"
            " decoded.",
            "",
            f"Mean confidence: {sure['reference']:.3f} of the reference, {sure['requests']:.3f} of"
            " the requests. The reference was perhaps trained on, which makes a model surer.",
            "",
            "PSI is the sum of (q - p) ln(q / p) over the shares p of the reference and q of the"
            " requests; below 0.1 is usually called no change, above 0.25 a large one. MMD² is the"
            " unbiased estimate with a Gaussian kernel of the median distance; p comes from"
            f" {drift.PERMUTATIONS} permutations.",
            "",
            "| predicted class | reference % | requests % |",
            "|---|---|---|",
            *rows,
            "",
            f"{asks} images to label next are in `labels_next.csv`.",
            "",
        ]
    )
