"""Describes a training method, so that one stage trains all methods (`workflow/train.py`).

A method is a value: what it needs, which networks it trains, how its trainer is built, and which
data the trainer takes. `workflow/methods.py` has the table of methods; docs/extending.md shows how
to add one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from ml_collections import ConfigDict

from data import pipeline
from data.preprocessing import Preprocessing
from data.records import Manifest
from training.trainer import Trainer

NO_IMAGES, IMAGES, PSEUDO_LABELED, TEACHER = "", "unlabeled", "pseudo_labeled", "teacher"
"""Where the second stream of images comes from.

- `NO_IMAGES`: there is no second stream.
- `IMAGES`: the data directory's unlabeled split.
- `PSEUDO_LABELED`: the records of --pseudo_labeled.
- `TEACHER`: the unlabeled split, labeled within the step by the model of --teacher.
"""


class Network(NamedTuple):
    """A network that a method trains, and what the backward pass of one step keeps of it.

    Attributes:
      name: name of its part of the train section; "" if the section itself is that of the only
        network.
      images: images a step, over all replicas, that keep their activations.
      rematerialize: whether the blocks' insides are computed twice.
    """

    name: str
    images: int
    rematerialize: bool

    def settings(self, section: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the network's part of the train section: `model`, `optimizer`, `schedule`."""
        part: Mapping[str, Any] = section[self.name] if self.name else section
        return part


def set_model(
    networks: Sequence[Network], section: dict[str, Any], model: Mapping[str, Any]
) -> None:
    """Gives all networks of a train section the architecture `model`.

    It is, for example, the architecture of the weights that the networks start from.
    """
    for network in networks:
        part = section[network.name] if network.name else section
        part["model"] = dict(model)


class Parts(NamedTuple):
    """Parts of a method's trainer, all of them made in the strategy's scope.

    Attributes:
      model: the classifier that is kept, images -> logits (B, K).
      optimizers: optimizers by the network's name.
      build: (a network's `model` settings, seed) -> another classifier for the same images.
      teacher: the finished model of --teacher, or None.
      seed: seed of the run.
      num_classes: K.
      adjustment: τ log π_k of each class, for the loss on labeled images, or None; see
        `losses.log_priors`.
    """

    model: tf.keras.Model
    optimizers: Mapping[str, tf.keras.optimizers.Optimizer]
    build: Callable[[Mapping[str, Any], int], tf.keras.Model]
    teacher: tf.keras.Model | None
    seed: int
    num_classes: int
    adjustment: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Streams:
    """The images of a training from one step on.

    Attributes:
      labeled: the labeled split.
      unlabeled: the split of the second stream, or None.
      preprocessing: size and noise of the images.
      batch_size: labeled images a step, over all replicas.
      unlabeled_batch_size: images of the second stream a step, over all replicas.
      options: seed, start_step, pipelines and replicas of `pipeline.train_batches`.
      clean: size of the images for the model of --teacher, or None.
    """

    labeled: Manifest
    unlabeled: Manifest | None
    preprocessing: Preprocessing
    batch_size: int
    unlabeled_batch_size: int
    options: Mapping[str, Any]
    clean: Preprocessing | None = None

    def labeled_batches(self, *, weak: bool = False, **options: Any) -> tf.data.Dataset:
        """Returns batches (x, y) of labeled images.

        Args:
          weak: augment by crop and flip alone.
          **options: see `pipeline.train_batches`.
        """
        noise = self.preprocessing.weak() if weak else self.preprocessing
        return pipeline.train_batches(
            self.labeled, noise, batch_size=self.batch_size, **options, **self.options
        )

    def unlabeled_batches(self, **options: Any) -> tf.data.Dataset:
        """Returns batches of the second stream. See `pipeline.train_batches` for `options`."""
        assert self.unlabeled
        size, images = self.unlabeled_batch_size, self.unlabeled
        return pipeline.train_batches(
            images, self.preprocessing, batch_size=size, stream_id=1, **options, **self.options
        )

    def weak_and_strong(self) -> tf.data.Dataset:
        """Returns elements ((x, y), (x_weak, x_strong)).

        x are weakly augmented labeled images. x_weak and x_strong are two views of unlabeled
        images.
        """
        return tf.data.Dataset.zip(
            (self.labeled_batches(weak=True), self.unlabeled_batches(targets="strong"))
        )


def network_of_three_views(section: Mapping[str, Any]) -> list[Network]:
    """Returns `Method.networks` of a method with one network and three views of images.

    The network passes over labeled images and two views of unlabeled ones.
    """
    return [
        Network(
            "",
            section["batch_size"] * (1 + 2 * section["unlabeled_ratio"]),
            section["rematerialize"],
        )
    ]


def weak_and_strong_samples(
    section: ConfigDict, noise: Preprocessing
) -> dict[str, tuple[str, Preprocessing]]:
    """Returns `Method.samples` of a method that takes `Streams.weak_and_strong`."""
    return {
        "labeled": ("labeled", noise.weak()),
        "unlabeled": ("unlabeled", noise),
        "unlabeled_weak": ("unlabeled", noise.weak()),
    }


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train a classifier.

    Each `section` is a resolved train section (see `training.resolve.section`).

    Attributes:
      unlabeled: section -> where its second stream comes from: `NO_IMAGES`, `IMAGES`,
        `PSEUDO_LABELED` or `TEACHER`.
      networks: section -> the networks that it trains; the first one is kept.
      build: (section, parts) -> the compiled trainer.
      batches: (section, streams) -> endless data for the trainer.
      samples: (section, noise of the images) -> name in TensorBoard -> (split, noise) of images to
        show there.
      check: section -> a warning or None. Raises InputError for values that cannot work together;
        its message begins with the key.
    """

    unlabeled: Callable[[Mapping[str, Any]], str]
    networks: Callable[[Mapping[str, Any]], list[Network]]
    build: Callable[[ConfigDict, Parts], Trainer]
    batches: Callable[[ConfigDict, Streams], tf.data.Dataset]
    samples: Callable[[ConfigDict, Preprocessing], Mapping[str, tuple[str, Preprocessing]]]
    check: Callable[[Mapping[str, Any]], str | None] = lambda section: None
