"""Model noise: stochastic depth and dropout with random numbers that belong to the example.

Noisy Student's students learn under noise inside the network. Here a layer's random number for one
example is a function of

    (seed, step, layer, row of the example in the global batch)

and of nothing else: not of the number of replicas, not of which replica computes the row, not of
what the process drew or built before. So a run on one device and a run on eight see the same noise.
A resumed run repeats the noise of the run it continues, and a step can be recomputed. Keras's own
layers draw from a stateful generator and promise none of that.

The four numbers reach the layers through a context, read while the layer runs (eagerly) or is
traced (in a ``tf.function``):

    @tf.function
    def train_step(images, step, rows):  # rows (b,): this replica's rows in the global batch
        with model_noise(seed, step, rows, num_rows=global_batch_size):
            logits = model(images, training=True)

The context must be entered *inside* the traced function, and inside the function that
``strategy.run`` receives: it is local to the thread, and MirroredStrategy traces each replica in
its own thread. Networks that run in the same step (a teacher and a student) take different
seeds. Otherwise layers of the same name would get the same noise. One limit: a step compiled by XLA
(``jit_compile=True``, TPUs) draws other numbers than the same step without it. They depend on the
same four things and on nothing else, so only a change between the two in mid-run is visible.

Outside any context the layers fall back on TensorFlow's stateful generator, so that the model still
works under a plain ``model.fit``.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Union

import tensorflow as tf

from cli.errors import InputError

IntLike = Union[int, tf.Tensor]


class _Noise:
    """State that :func:`model_noise` leaves for the layers."""

    def __init__(
        self,
        key: tf.Tensor,
        rows: tf.Tensor | None,
        num_rows: IntLike | None,
        noised: tf.Tensor | None,
        inference: bool,
    ):
        self.key = key  # (2,) int32
        self.rows = rows  # (b,) or None
        self.num_rows = num_rows
        self.noised = noised  # (b,) bool, or None for all
        self.inference = inference

    def uniform(self, layer: int, batch: IntLike, features: tf.Tensor) -> tf.Tensor:
        """Draws float32 in [0, 1) of shape (batch, *features) for one layer."""
        # Xor is enough to separate the layers: the generator scrambles its seed, so neighboring
        # keys are independent.
        key = tf.bitwise.bitwise_xor(self.key, tf.constant([layer, 0], tf.int32))
        # The algorithm is named, because the default one depends on the kind of device.
        if self.rows is None:
            return tf.random.stateless_uniform(tf.concat([[batch], features], 0), key, alg="philox")
        drawn = tf.random.stateless_uniform(
            tf.concat([[self.num_rows], features], 0), key, alg="philox"
        )
        return tf.gather(drawn, self.rows)


class _Contexts(threading.local):
    """The contexts entered in this thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Noise] = []


_contexts = _Contexts()


@contextlib.contextmanager
def model_noise(
    seed: IntLike,
    step: IntLike,
    rows: tf.Tensor | None = None,
    num_rows: IntLike | None = None,
    *,
    noised: tf.Tensor | None = None,
    inference: bool = False,
) -> Iterator[None]:
    """Makes the noise of this thread's layers depend only on seed, step, layer and row.

    A gradient checkpoint (``tf.recompute_grad``) runs the forward pass again while gradients are
    taken. :func:`repeated_noise` gives the second pass the first one's noise.

    Args:
        seed: integer, or scalar integer tensor; its low 31 bits count.
        step: the global step, in the same form, so that each step has its own noise.
        rows: int32 or int64 (b,): the row of each of this replica's examples in the global batch,
          each in [0, num_rows). None: the noise depends on the replica and the example's place in
          its batch. This costs less (only b rows are drawn), but changes with the number of
          replicas.
        num_rows: rows of the global batch; every replica of a step must give the same. Required
          with ``rows``.
        noised: bool (b,): the examples that get noise; None: all. The noise of one example does not
          depend on which others get noise.
        inference: whether there is noise with ``training=False`` too. This is for a noised teacher;
          its batch normalization uses its moving statistics.

    Raises:
        InputError: ``rows`` without ``num_rows``.
    """
    if rows is not None and num_rows is None:
        raise InputError("model_noise: rows need num_rows, the size of the global batch")
    words = [_low_bits(seed), _low_bits(step)]
    # A hash of (seed, step): from here on two words identify the pair, and a layer may be mixed in
    # cheaply.
    key = tf.random.stateless_uniform(
        [2], tf.stack(words), minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )  # (2,)
    if rows is None:
        key = tf.random.stateless_uniform(
            [2],
            tf.stack([key[0], key[1] ^ _replica_id()]),
            minval=None,
            maxval=None,
            dtype=tf.int32,
            alg="philox",
        )
    with _entered(
        _Noise(
            key, None if rows is None else tf.convert_to_tensor(rows), num_rows, noised, inference
        )
    ):
        yield


def repeated_noise() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a function that makes contexts with the noise in force at this call.

    It is for code that runs again when gradients are taken.

    Raises:
        InputError: outside of :func:`model_noise`: the stateful generator repeats nothing.
    """
    if not _contexts.stack:
        raise InputError("repeated_noise: there is no noise to repeat outside of model_noise")
    return functools.partial(_entered, _contexts.stack[-1])


@contextlib.contextmanager
def _entered(noise: _Noise) -> Iterator[None]:
    _contexts.stack.append(noise)
    try:
        yield
    finally:
        _contexts.stack.pop()


def _low_bits(number: IntLike) -> tf.Tensor:
    """Returns the low 31 bits, as int32.

    Compilers for accelerators drop the upper half of a 64-bit seed without a word.
    """
    if isinstance(number, int):
        return tf.constant(number & 0x7FFFFFFF, tf.int32)
    return tf.cast(tf.cast(number, tf.int64) & 0x7FFFFFFF, tf.int32)


def _replica_id() -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return tf.cast(0 if context is None else context.replica_id_in_sync_group, tf.int32)


class _NoiseLayer(tf.keras.layers.Layer):
    """Base of the two layers: the layer's index, the draw, and the identity outside training."""

    def __init__(self, noise_id: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.noise_id = noise_id

    @property
    def layer_index(self) -> int:
        """Returns the unique id of this layer within its model, int32.

        It is the CRC-32 of ``noise_id`` (or of the layer's name). A hash of a name, unlike a
        counter, makes two processes agree, whatever each of them built before.
        """
        index = zlib.crc32((self.noise_id or self.name).encode())
        return index - 2**32 if index >= 2**31 else index

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return {**super().get_config(), "noise_id": self.noise_id}

    def _uniform(self, inputs: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
        batch = tf.shape(inputs)[0]
        if not _contexts.stack:
            return tf.random.uniform(tf.concat([[batch], features], 0))
        noise = _contexts.stack[-1]
        given, present = None if noise.rows is None else noise.rows.shape[0], inputs.shape[0]
        if given is not None and present is not None and given != present:
            # One row would otherwise spread over the whole batch by broadcasting.
            raise InputError(f"model_noise: {given} rows for a batch of {present}")
        return noise.uniform(self.layer_index, batch, features)

    def _scaled(self, inputs: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Returns inputs (B, ...) times scale, for the examples that get noise.

        `scale` is float32 and of the same rank.
        """
        noised = _contexts.stack[-1].noised if _contexts.stack else None
        if noised is not None:
            scale = tf.where(tf.reshape(noised, [-1] + [1] * (inputs.shape.rank - 1)), scale, 1.0)
        return inputs * tf.cast(scale, inputs.dtype)

    def _noised(self, inputs: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def call(self, inputs: tf.Tensor, training: Any = None) -> tf.Tensor:
        """Returns the noised input in training or in a context with `inference`, else the input.

        A frozen layer (`trainable` off) makes no noise.
        """
        if not self.trainable:
            return inputs
        if _contexts.stack and _contexts.stack[-1].inference:
            return self._noised(inputs)
        # TF1-style graphs have the learning phase as a placeholder.
        if isinstance(training, tf.Tensor):
            return tf.cond(
                tf.cast(training, tf.bool),
                lambda: self._noised(inputs),
                lambda: tf.identity(inputs),
            )
        return self._noised(inputs) if training else inputs


@tf.keras.utils.register_keras_serializable(package="efficientnet")
class StochasticDepth(_NoiseLayer):
    """Drops a residual branch, example by example, while training.

    With x_i the branch of example i and p the survival probability,

        y_i = x_i * k_i / p,   k_i ~ Bernoulli(p),   k_i = [u_i < p],  u_i ~ Uniform[0, 1),

    so E[y_i] = x_i and inference, where y_i = x_i, needs no rescaling. The skip is added outside
    the layer: a dropped block is the identity.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, section 3 (there the
    scaling by p is done at test time). The drop per example and the 1/p while training follow the
    EfficientNet authors' ``utils.drop_connect``.

    Args:
        survival_probability: p, in (0, 1].
        noise_id: separates this layer's noise from the other layers' noise; None: the layer's name,
          which then must be given.

    Input and output: (B, ...) in the layer's compute dtype, which may be float32, bfloat16 or
    float16.

    Raises:
        InputError: p out of range.
    """

    def __init__(self, survival_probability: float, noise_id: str | None = None, **kwargs: Any):
        super().__init__(noise_id, **kwargs)
        if not 0 < survival_probability <= 1:
            raise InputError(
                f"survival_probability must be above 0 and at most 1, not {survival_probability}"
            )
        self.survival_probability = survival_probability

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return {**super().get_config(), "survival_probability": self.survival_probability}

    @tf.autograph.experimental.do_not_convert
    def _noised(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.survival_probability == 1:
            return inputs
        uniform = self._uniform(inputs, tf.constant([], tf.int32))  # (B,)
        scale = (
            tf.cast(uniform < self.survival_probability, tf.float32) / self.survival_probability
        )  # (B,)
        return self._scaled(inputs, tf.reshape(scale, [-1] + [1] * (inputs.shape.rank - 1)))


@tf.keras.utils.register_keras_serializable(package="efficientnet")
class Dropout(_NoiseLayer):
    """Drops single features while training.

    With r the rate,

        y_ij = x_ij * k_ij / (1 - r),   k_ij ~ Bernoulli(1 - r),

    so E[y_ij] = x_ij; at inference y = x.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014, with the scaling moved to training as everyone does since.

    Args:
        rate: r, in [0, 1).
        noise_id: separates this layer's noise from the other layers' noise; None: the layer's name,
          which then must be given.

    Input and output: (B, ...) in the layer's compute dtype, which may be float32, bfloat16 or
    float16.

    Raises:
        InputError: r out of range.
    """

    def __init__(self, rate: float, noise_id: str | None = None, **kwargs: Any):
        super().__init__(noise_id, **kwargs)
        if not 0 <= rate < 1:
            raise InputError(f"dropout rate must be at least 0 and below 1, not {rate}")
        self.rate = rate

    def get_config(self) -> dict[str, Any]:
        """Returns what rebuilds the layer."""
        return {**super().get_config(), "rate": self.rate}

    @tf.autograph.experimental.do_not_convert
    def _noised(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.rate == 0:
            return inputs
        uniform = self._uniform(inputs, tf.shape(inputs)[1:])  # (B, ...)
        return self._scaled(inputs, tf.cast(uniform >= self.rate, tf.float32) / (1.0 - self.rate))
