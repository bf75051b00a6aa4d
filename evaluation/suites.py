"""Measures one model: each suite leaves its answers in files of the model's folder.

`results` makes numbers from these files:

    predictions.npz        clean: keys [N], labels [N], probabilities [N, K], seconds
    embedding.npz          of the last model, beside the clean suite: see `evaluation.embedding`
    a.npz                  keys, labels, top5 [N, 5] among the 200 classes of ImageNet-A,
                           top5_of_all [N, 5] among all
    c/<set>.npz            labels, answers [N], keys_digest; a set is `<corruption>-<severity>`,
                           or `unchanged`
    p/<perturbation>.npz   answers [n, m], labels [n], keys_digest of the sequences
    adversarial.npz        keys, labels, epsilons [E], fgsm [E, N], pgd [N]: right or wrong;
                           images, attacked: a few to look at

A file is written whole or not at all, and a file that is there is not made again. So a run that was
killed goes on after the last finished set. The result of each set is also appended to
`progress.jsonl` in the work directory, to be read meanwhile.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import to_json
from data.preprocessing import Preprocessing, decode
from evaluation import adversarial, predict
from evaluation.classifiers import Classifier
from evaluation.examples import Examples
from evaluation.imagenet import A_CLASSES
from evaluation.predict import Pixels, Predictions, input_pixels
from evaluation.robustness import is_noise
from evaluation.settings import Settings

SUITES = ("clean", "real", "a", "c", "p", "adversarial")

_ATTACKED_TO_SHOW = 12


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The sets that the suites of a run need; None or empty where no suite needs them.

    Attributes:
      clean: the labeled split, which is also attacked.
      a: ImageNet-A.
      c: corruption -> severity -> examples; `unchanged` beside it where the set was built here.
      unchanged: the images of a built -C without corruption.
      p: perturbation -> (examples, frames of a sequence).
      released_c, released_p: whether they are ImageNet's; their protocol and reference differ.
    """

    clean: Examples | None = None
    a: Examples | None = None
    c: Mapping[str, Mapping[int, Examples]] = dataclasses.field(default_factory=dict)
    unchanged: Examples | None = None
    p: Mapping[str, tuple[Examples, int]] = dataclasses.field(default_factory=dict)
    released_c: bool = False
    released_p: bool = False

    def c_sets(self) -> list[Examples]:
        """Returns all sets of -C, one after another."""
        sets = [examples for severities in self.c.values() for examples in severities.values()]
        return ([self.unchanged] if self.unchanged else []) + sets


@dataclasses.dataclass(frozen=True)
class Folder:
    """Folder for a model's answers.

    Attributes:
      path: the model's folder.
      log: the run's `progress.jsonl`.
    """

    path: Path
    log: Path

    def missing(self, sets: Sequence[Examples], suite: str) -> list[Examples]:
        """Returns the sets of `sets` that have no file yet."""
        return [examples for examples in sets if not self.file(suite, examples.name).exists()]

    def file(self, suite: str, name: str) -> Path:
        """Returns the file of one set."""
        return self.path / suite / f"{name}.npz"

    def save(
        self, path: Path, arrays: Mapping[str, Any], suite: str, values: Mapping[str, Any]
    ) -> None:
        """Writes `arrays`, then a line about it with `values`."""
        with atomic_path(path) as temporary, open(temporary, "wb") as f:
            np.savez(f, **arrays)
        line = {"model": self.path.name, "suite": suite, **values}
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(to_json(line) + "\n")


def needed(folder: Folder, suites: Sequence[str], inputs: Inputs) -> bool:
    """Tells whether anything is left to do, so that the model must be loaded."""
    files = []
    if {"clean", "real"} & set(suites):
        files.append(folder.path / "predictions.npz")
    if "a" in suites:
        files.append(folder.path / "a.npz")
    if "c" in suites:
        files += [folder.file("c", examples.name) for examples in inputs.c_sets()]
    if "p" in suites:
        files += [folder.file("p", name) for name in inputs.p]
    if "adversarial" in suites:
        files.append(folder.path / "adversarial.npz")
    return not all(file.exists() for file in files)


def run(
    classifier: Classifier,
    suites: Sequence[str],
    inputs: Inputs,
    settings: Settings,
    folder: Folder,
) -> None:
    """Runs what is missing of `suites`. Raises InputError; see `predict.predict`."""
    if (
        {"clean", "real"} & set(suites)
        and inputs.clean
        and not (folder.path / "predictions.npz").exists()
    ):
        for _, result in predict.predict(classifier, [inputs.clean], settings.batch_size):
            save_predictions(folder, result)
    if "a" in suites and inputs.a and not (folder.path / "a.npz").exists():
        _run_a(classifier, inputs.a, settings, folder)
    if "c" in suites:
        _run_c(classifier, inputs, settings, folder)
    if "p" in suites:
        _run_p(classifier, inputs, settings, folder)
    if "adversarial" in suites and inputs.clean and not (folder.path / "adversarial.npz").exists():
        _run_adversarial(classifier, inputs.clean, settings, folder)


def save_predictions(folder: Folder, result: Predictions) -> None:
    """Writes the answers to the clean split."""
    probabilities = result.values["probabilities"]
    arrays = {
        "keys": result.keys,
        "labels": result.labels,
        "probabilities": probabilities,
        "seconds": result.seconds,
    }
    top1 = float(np.mean(probabilities.argmax(axis=1) == result.labels))
    folder.save(
        folder.path / "predictions.npz",
        arrays,
        "clean",
        {"examples": len(result.keys), "top1": top1},
    )


def protocol(preprocessing: Preprocessing, settings: Settings, released: bool) -> Preprocessing:
    """Returns how images of -C and -P become pixels.

    Released images are crops already, so they are resized whole. Images built here are treated as
    any other image.
    """
    if not (released and settings.whole_image):
        return preprocessing
    return Preprocessing(
        image_size=preprocessing.image_size,
        style="small",
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def _run_a(classifier: Classifier, examples: Examples, settings: Settings, folder: Folder) -> None:
    def top5(probabilities: np.ndarray) -> dict[str, np.ndarray]:
        best = np.argsort(-probabilities[:, A_CLASSES], axis=1, kind="stable")[:, :5]  # (b, 5)
        of_all = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]  # (b, 5)
        return {"top5": A_CLASSES[best], "top5_of_all": of_all}

    for _, result in predict.predict(classifier, [examples], settings.batch_size, top5):
        top1 = float(np.mean(result.values["top5"][:, 0] == result.labels))
        arrays = {"keys": result.keys, "labels": result.labels, **result.values}
        folder.save(
            folder.path / "a.npz", arrays, "a", {"examples": len(result.keys), "top1": top1}
        )


def _run_c(classifier: Classifier, inputs: Inputs, settings: Settings, folder: Folder) -> None:
    pending = folder.missing(inputs.c_sets(), "c")
    if not pending:
        return
    preprocessing = protocol(classifier.preprocessing, settings, inputs.released_c)
    for examples, result in predict.predict(
        classifier, pending, settings.batch_size, predict.answers, preprocessing
    ):
        answers = result.values["answers"]
        arrays = {
            "labels": result.labels,
            "answers": answers,
            "keys_digest": keys_digest(result.keys),
        }
        values = {
            "set": examples.name,
            "examples": examples.count,
            "error": float(np.mean(answers != result.labels)),
            **_rate(result),
        }
        folder.save(folder.file("c", examples.name), arrays, "c", values)


def _run_p(classifier: Classifier, inputs: Inputs, settings: Settings, folder: Folder) -> None:
    named = {examples.name: (name, frames) for name, (examples, frames) in inputs.p.items()}
    pending = [
        examples for name, (examples, _) in inputs.p.items() if not folder.file("p", name).exists()
    ]
    if not pending:
        return
    preprocessing = protocol(classifier.preprocessing, settings, inputs.released_p)
    for examples, result in predict.predict(
        classifier, pending, settings.batch_size, predict.answers, preprocessing
    ):
        name, frames = named[examples.name]
        answers = sequences(result.keys, result.values["answers"], frames, examples.origin)
        names = np.array(
            [str(key).rsplit("#", 1)[0] for key in result.keys[::frames]]
        )  # without the frame's number
        arrays = {
            "labels": result.labels[::frames],
            "answers": answers,
            "keys_digest": keys_digest(names),
        }
        reference = answers[:, :1] if is_noise(name) else answers[:, :-1]
        values = {
            "set": name,
            "sequences": len(answers),
            "flips": float(np.mean(answers[:, 1:] != reference)),
            **_rate(result),
        }
        folder.save(folder.file("p", name), arrays, "p", values)


def _rate(result: Predictions) -> dict[str, float]:
    return {"images_per_second": round(len(result.keys) / max(result.seconds, 1e-9), 1)}


def sequences(keys: np.ndarray, answers: np.ndarray, frames: int, origin: str) -> np.ndarray:
    """Returns the answers [n · frames] as [n, frames].

    Raises:
      InputError: the keys, KEY#number, are not those of whole sequences in order.
    """
    names, numbers = zip(*(str(key).rsplit("#", 1) for key in keys))
    by_sequence = np.array(names).reshape(-1, frames)
    complete = (by_sequence == by_sequence[:, :1]).all() and (
        np.array(numbers, int).reshape(-1, frames) == np.arange(frames)
    ).all()
    if not complete:
        raise InputError(
            f"{origin} holds sequences that are not {frames} frames each, in order; make the data"
            " again"
        )
    return answers.reshape(-1, frames)


def keys_digest(keys: np.ndarray) -> str:
    """Returns a digest: two models with equal ones answered the same examples in the same order."""
    return hashlib.sha256("\0".join(keys.tolist()).encode()).hexdigest()[:16]


def attacked_pixels(
    examples: Examples, preprocessing: Preprocessing
) -> tuple[Pixels, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns the pixels to attack, and the function that turns a batch of them into network input.

    Pixels are whole gray levels in 0–255. If the style is `small` and all images have one size, the
    stored pixels are attacked. Without an attack the answers are then those of the clean suite, and
    the gradient goes through the resizing. For all other images, what the network reads is
    attacked, as in the paper (800 pixels there). It is held to 0–255 and rounded, since resizing
    may leave both.
    """
    size = preprocessing.image_size
    shape = predict.common_shape(examples) if preprocessing.style == "small" else None
    if shape is None:
        of = input_pixels(preprocessing).of
        return (
            Pixels(
                lambda encoded: tf.round(tf.clip_by_value(of(encoded), 0.0, 255.0)), (size, size, 3)
            ),
            tf.identity,
        )
    return (
        Pixels(lambda encoded: tf.ensure_shape(tf.cast(decode(encoded), tf.float32), shape), shape),
        lambda images: tf.raw_ops.ResizeBicubic(
            images=images, size=[size, size], half_pixel_centers=False
        ),
    )


def _attack(logits: adversarial.Logits, s: Settings) -> Callable[..., tuple[np.ndarray, ...]]:
    """Returns the attack of one device, as `_run_adversarial` collects it.

    The attack takes images [B, H, W, 3], labels [B] and keys [B].
    """
    epsilons = tf.constant(s.fgsm_epsilons, tf.float32)  # (E,)

    def right(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        return tf.argmax(logits(images), axis=1) == labels  # (B,)

    @tf.function
    def attack(images: tf.Tensor, labels: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, ...]:
        gradient = adversarial.input_gradient(logits, images, labels)
        by_epsilon = tf.map_fn(
            lambda epsilon: right(adversarial.fgsm(images, gradient, epsilon, s.norm), labels),
            epsilons,
            fn_output_signature=tf.bool,
        )  # (E, B)
        start = (
            adversarial.random_start(images, keys, s.seed, s.pgd_epsilon)
            if s.pgd_random_start
            else None
        )
        attacked = adversarial.pgd(
            logits,
            images,
            labels,
            s.pgd_epsilon,
            iterations=s.pgd_iterations,
            step=s.step,
            norm=s.norm,
            start=start,
        )
        # A value that is not finite once stays so in every later step of the attack.
        finite = [
            tf.reduce_all(tf.math.is_finite(values), axis=[1, 2, 3])
            for values in (gradient, attacked)
        ]  # (B,) each
        return by_epsilon, right(attacked, labels), attacked, finite[0] & finite[1]

    return lambda *batch: tuple(tensor.numpy() for tensor in attack(*batch))


def _run_adversarial(
    classifier: Classifier, examples: Examples, settings: Settings, folder: Folder
) -> None:
    """Attacks every example.

    Raises:
      InputError: what `predict.predict` refuses, or gradients that are not finite.
    """
    predict.require_some(examples)
    s = settings
    pixels, to_input = attacked_pixels(examples, classifier.preprocessing)
    attack = classifier.everywhere(
        lambda logits: _attack(lambda images: logits(to_input(images)), s)
    )
    collected: dict[str, list[np.ndarray]] = {
        name: [] for name in ("keys", "labels", "fgsm", "pgd", "images", "attacked")
    }
    started = time.perf_counter()

    def checked() -> Iterator[dict[str, tf.Tensor]]:
        for number, batch in enumerate(
            predict.read(predict.image_batches([examples], s.batch_size, pixels), [examples])
        ):
            real = batch["set"].numpy() >= 0
            # Before the attack: the loss of a label that is not a class would depend on the device.
            predict.require_labels(
                examples, batch["key"].numpy()[real], batch["label"].numpy()[real]
            )
            if number == 0:
                predict.require_classes(
                    classifier, classifier.logits(to_input(batch["image"])).shape[1], examples
                )
            yield batch

    for batch, answers in attack.map(
        lambda batch: (batch["image"], batch["label"], batch["key"]), checked()
    ):
        real, images = batch["set"].numpy() >= 0, batch["image"].numpy()
        keys, labels = batch["key"].numpy()[real], batch["label"].numpy()[real]
        fgsm, pgd, attacked, finite = answers
        if not finite[real].all():
            key = keys[~finite[real]][0].decode()
            raise InputError(
                f"the gradient of {classifier.name} for {key!r} is not finite; train it again"
            )
        arrays = {"keys": keys, "labels": labels, "fgsm": fgsm[:, real].T, "pgd": pgd[real]}
        shown = sum(map(len, collected["images"]))
        arrays |= {
            "images": images[real][: _ATTACKED_TO_SHOW - shown],
            "attacked": attacked[real][: _ATTACKED_TO_SHOW - shown],
        }
        for name, array in arrays.items():
            collected[name].append(array)
    merged = {name: np.concatenate(arrays) for name, arrays in collected.items()}
    merged["keys"] = predict.check_keys(examples, merged["keys"], merged["labels"])
    merged["fgsm"] = merged["fgsm"].T  # (E, N)
    values = {
        "examples": examples.count,
        "pgd_top1": float(merged["pgd"].mean()),
        "seconds": round(time.perf_counter() - started, 1),
    }
    folder.save(
        folder.path / "adversarial.npz",
        {**merged, "epsilons": np.array(s.fgsm_epsilons)},
        "adversarial",
        values,
    )
