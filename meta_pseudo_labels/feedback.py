"""The feedback of Meta Pseudo Labels: what the teacher learns from the student's step.

See Pham et al. 2021, Section 2. The student moves by one step on pseudo-labels that the teacher
drew. The teacher minimizes the labeled loss J after that step:

    θ_S' = θ_S − η_S ∇ L_u    (the step under eq. 2)
    L_u = 1/B_u Σ_i CE(ŷ_i, S(x_i; θ_S)),   ŷ_i ~ T(x_i; θ_T) independently
    J(θ_T) = E_ŷ [L_l(θ_S')]    (eq. 3, hard labels)

L_l is the mean cross entropy of the labeled batch. Labels are drawn, so ∇J needs the score
function, and ∇ log T(ŷ_i) = −∇CE(ŷ_i, T_i):

    ∇J = E[L_l(θ_S') Σ_i ∇ log T(ŷ_i)]
       = E[(L_l(θ_S) − L_l(θ_S')) Σ_i ∇CE(ŷ_i, T(x_i; θ_T))]    (A)

The second form is allowed because E[∇ log T(ŷ_i)] = 0: any number that the labels do not influence
may be added to the reward. It says: where the labeled loss went *down*, make these labels more
likely. Three consequences that implementations got wrong:

1. *Sign.* The factor is old − new.
2. *Batch factor.* (A) has the sum over the batch, not its mean. With one scalar for the whole
   batch, h · mean CE is 1/B_u of the gradient; `batch_factor` gives the B_u back. Where every
   example has its own h_i, the mean is right (see `label_feedback`).
3. *Independent draws.* The cross terms E[r_i ∇ log T(ŷ_j)], i ≠ j, vanish because the ŷ are drawn
   from T. With the most probable class instead of a draw they do not vanish, and the result is no
   gradient of J.

To the first order in η_S the reward is an inner product of gradients (eq. 12 in Appendix A):

    L_l(θ_S) − L_l(θ_S') ≈ η_S ⟨∇L_l(θ_S'), ∇L_u(θ_S)⟩ = 1/B_u Σ_i h_i    (B)
    h_i = η_S ⟨∇L_l(θ_S'), ∇CE(ŷ_i, S(x_i; θ_S))⟩

The functions here are pure: they take measurements and give the feedback, or the loss that the
teacher minimizes. Their results for a distributed step are right if the losses and gradients given
are already those of the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

PSEUDO_LABELS = ("sampled", "argmax", "soft")

Gradients = Sequence["tf.Tensor | None"]
"""A gradient, variable by variable; None where the loss does not reach the variable."""


# Pseudo-labels


def draw_pseudo_labels(kind: str, logits: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Returns the labels that the teacher gives, as distributions (B, K) without a gradient.

    Args:
      kind: "sampled" (the paper: ŷ ~ T), "argmax" (the most probable class; biased, consequence 3
        above), or "soft" (T itself).
      logits: the teacher's logits, (B, K).
      uniform: uniform numbers in [0, 1), (B, K). The draw is a function of them (Gumbel's method:
        argmax_k z_k − log(−log u_k) ~ softmax z).
    """
    if kind == "soft":
        return tf.stop_gradient(tf.nn.softmax(logits))
    if kind == "sampled":
        tiny = uniform.dtype.as_numpy_dtype(1e-20)
        logits = logits - tf.math.log(tiny - tf.math.log(uniform + tiny))
    return tf.one_hot(tf.argmax(logits, -1), logits.shape[-1], dtype=logits.dtype)


def soft_cross_entropy(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns −Σ_k q_k log softmax(z)_k of each example, (B,).

    It is differentiable, also twice, in both arguments. TensorFlow's own op forgets the targets in
    its second derivative, and `label_feedback` is made of that derivative.
    """
    return -tf.reduce_sum(targets * tf.nn.log_softmax(logits), -1)


# Estimators of h


def finite_difference(old_loss: tf.Tensor, new_loss: tf.Tensor) -> tf.Tensor:
    """Returns the reward of (A) itself, h = L_l(θ_S) − L_l(θ_S'), without any approximation.

    It is unbiased for whatever the student's optimizer does with the gradient: what momentum,
    weight decay and earlier steps contribute to the move does not depend on the labels just drawn.
    That contribution is noise, though, which the other estimators lack.

    Args:
      old_loss: mean cross entropy of the labeled batch before the student's step.
      new_loss: the same loss after the step: same examples, same noise, BatchNorm in the same mode.
        Otherwise the difference of the modes is in h.
    """
    return old_loss - new_loss


def dot_product(labeled: Gradients, unlabeled: Gradients, factor: tf.Tensor | float) -> tf.Tensor:
    """Returns the paper's eq. 12, which is `finite_difference` to the first order.

    h = η_S ⟨∇L_l(θ_S'), ∇L_u(θ_S)⟩ is off by O(η_S²). Here η_S is the factor of the student's whole
    step, θ_S' = θ_S − η_S ∇L_u + terms without labels. It is the learning rate for SGD, and (1 + μ)
    times the learning rate with Nesterov's momentum μ.

    Args:
      labeled: gradient of the labeled loss at the *new* weights, variable by variable.
      unlabeled: gradient of the student's loss at the *old* weights.
      factor: η_S of this step (`training.optimizers.linear_factor`), times what clipping left of
        the gradient (`kept_by_clipping`).
    """
    product = _inner(labeled, unlabeled)
    return tf.cast(factor, product.dtype) * product


def cosine(labeled: Gradients, unlabeled: Gradients) -> tf.Tensor:
    """Returns h = cos(∇L_l(θ_S'), ∇L_u(θ_S)), in [−1, 1]; 0 where either gradient is 0.

    It is the normalized product (Appendix C.3). It keeps the sign of the gradient of J but not the
    size: ‖∇L_u‖ depends on the labels drawn, so after dividing by it the expectation is no longer
    ∇J times a constant.
    """
    norms = tf.sqrt(_inner(labeled, labeled) * _inner(unlabeled, unlabeled))
    return tf.math.divide_no_nan(_inner(labeled, unlabeled), norms)


def label_feedback(
    tape: tf.GradientTape,
    pseudo_labels: tf.Tensor,
    unlabeled: Gradients,
    labeled: Gradients,
    factor: tf.Tensor | float,
    batch_size: tf.Tensor | int,
) -> tf.Tensor:
    """Returns the feedback h_ik of every example and *every* class, (B_u, K).

        h_ik = η_S ⟨∇L_l(θ_S'), ∇CE(k, S(x_i; θ_S))⟩ = −B_u ∂L_l(θ_S')/∂ŷ_ik

    It says what the labeled loss would lose if example i had been a little more of class k. Since
    ∇L_u is linear in ŷ, it is a directional derivative of the student's log-probabilities,

        h_ik = −η_S d/dε log S_k(x_i; θ_S + ε ∇L_l(θ_S')) at ε = 0,

    a forward-mode derivative (JVP) for all examples and classes at once. It is the derivative of
    the gradient with respect to the labels, along ∇L_l(θ_S'). The tape of the student's backward
    pass gives it. So it is taken at θ_S, although the variables have moved on, with one more pass
    through what that tape recorded. BatchNorm's coupling of the examples is in it.

    Args:
      tape: has watched `pseudo_labels` and recorded how `unlabeled` was computed, with
        `soft_cross_entropy`.
      pseudo_labels: ŷ (B_u, K).
      unlabeled: ∇L_u(θ_S).
      labeled: ∇L_l(θ_S').
      factor: η_S of this step, as for `dot_product`. What clipping left is taken for a constant
        here, although it depends on all labels of the step. Under clipping h is therefore an
        approximation, and with few examples it can be a bad one: docs/derivation.md, "The teacher's
        gradient".
      batch_size: B_u, over all replicas.
    """
    # A variable that the unlabeled loss does not reach has no gradient.
    pairs = [(u, v) for u, v in zip(unlabeled, labeled) if u is not None and v is not None]
    gradients, directions = zip(*pairs)
    slope = tape.gradient(
        list(gradients), pseudo_labels, output_gradients=list(directions)
    )  # (B_u, K)
    return tf.cast(factor, slope.dtype) * tf.cast(batch_size, slope.dtype) * slope


def label_feedback_of(logits: tf.Tensor, slope: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Returns the h_ik of `label_feedback` from the derivative of the student's logits, (B_u, K).

    With S = softmax z, the derivative of log S_k is d_k − Σ_j S_j d_j. d_j is the derivative of
    z_j.

    Args:
      logits: z of the student at θ_S, (B_u, K).
      slope: d/dε z(θ_S + ε ∇L_l(θ_S')) at ε = 0, (B_u, K): see
        `training.rematerialization.derivative_pass`.
      factor: as for `label_feedback`.
    """
    mean = tf.reduce_sum(tf.nn.softmax(logits) * slope, -1, keepdims=True)  # (B_u, 1)
    return tf.cast(factor, slope.dtype) * (mean - slope)


def drawn(h: tf.Tensor, pseudo_labels: tf.Tensor) -> tf.Tensor:
    """Returns h of the labels drawn: h_i (B_u,) of h_ik (B_u, K).

    Any other h, () or (B_u,), is returned as it is.
    """
    return tf.reduce_sum(h * pseudo_labels, -1) if h.shape.rank == 2 else h


def released(old_loss: tf.Tensor, new_loss: tf.Tensor) -> tf.Tensor:
    """Returns the released code's h = new − old; its sign is opposite to (A).

    `released_loss` has no gradient in any case.
    """
    return new_loss - old_loss


# Baseline


def center(
    feedback: tf.Tensor, mean: tf.Tensor, baseline: tf.Tensor, decay: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Subtracts a moving average from h (Appendix C.3), for less variance.

    The subtracted average is that of the *earlier* steps, so it does not depend on this step's
    labels and (A) stays unbiased. The release updates the average first and starts it at a random
    number.

    Args:
      feedback: h (), or h_i (B,).
      mean: h, averaged over the global batch.
      baseline: b, the average so far.
      decay: decay of the average.

    Returns:
      (h − b, the next b = decay·b + (1 − decay)·h).
    """
    return feedback - baseline, decay * baseline + (1.0 - decay) * mean


# The teacher's loss


def hard_loss(
    feedback: tf.Tensor,
    pseudo_labels: tf.Tensor,
    logits: tf.Tensor,
    batch_factor: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Returns factor · mean_i h_i CE(ŷ_i, T(x_i; θ_T)); its expected gradient is ∇J.

    Args:
      feedback: h () or h_i (B,). With h the factor is B_u for ∇J itself, and 1 for ∇J/B_u (eq. 12
        read with CE as the average that Section 2 defines). With h_i of the labels drawn the factor
        is 1: E[h_i Σ_j ∇CE_j] = E[h_i ∇CE_i] by consequence 3. So leaving out the other examples'
        terms takes away only their variance, to the first order in η_S (∇L_l(θ_S') in
        h_i still depends on all labels).
      pseudo_labels: ŷ, one-hot (B, K).
      logits: the teacher's logits that ŷ was drawn from, (B, K).
      batch_factor: factor of the whole loss.
    """
    feedback, pseudo_labels = tf.stop_gradient(feedback), tf.stop_gradient(pseudo_labels)
    return tf.cast(batch_factor, logits.dtype) * tf.reduce_mean(
        feedback * soft_cross_entropy(pseudo_labels, logits)
    )


def soft_loss(label_feedback: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns −mean_i Σ_k h_ik T_k(x_i; θ_T): no draw, so no score function.

    With soft pseudo-labels J = L_l(θ_S') is differentiable (Section 2) and this has its exact
    gradient, Σ_ik ∂J/∂ŷ_ik ∇T_ik with ∂J/∂ŷ_ik = −h_ik/B_u. With sampled ones it is, to the first
    order in η_S, the expectation of `hard_loss` over ŷ_i given the other labels.

    Args:
      label_feedback: h_ik (B, K).
      logits: the teacher's logits, (B, K).
    """
    return -tf.reduce_mean(
        tf.reduce_sum(tf.stop_gradient(label_feedback) * tf.nn.softmax(logits), -1)
    )


def released_loss(feedback: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the released h · mean CE(T, T) with the target's gradient stopped.

    ∂CE(sg[T], T)/∂z = T − sg[T] = 0: whatever h is, the teacher gets no gradient.
    """
    return hard_loss(feedback, tf.nn.softmax(logits), logits)


def _inner(a: Gradients, b: Gradients) -> tf.Tensor:
    """Returns ⟨a, b⟩ over all variables; None is 0."""
    return tf.add_n([tf.reduce_sum(x * y) for x, y in zip(a, b) if x is not None and y is not None])


# The estimators as values


class Measurements(NamedTuple):
    """Measurements of the student's step, to make h from; see `Estimator` for what is None.

    Attributes:
      pseudo_labels: ŷ of this replica's examples, (B_u, K).
      old: L_l(θ_S) of the global batch, ().
      new: L_l(θ_S') of the global batch, ().
      labeled: ∇L_l(θ_S') of the global batch, variable by variable.
      unlabeled: ∇L_u(θ_S) of the global batch, variable by variable.
      factor: η_S of the step, times what clipping left of the gradient, ().
      per_label: returns `label_feedback` of this replica's examples, (B_u, K).
    """

    pseudo_labels: tf.Tensor
    old: tf.Tensor | None
    new: tf.Tensor | None
    labeled: Gradients
    unlabeled: Gradients
    factor: tf.Tensor | None
    per_label: Callable[[], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Estimator:
    """One way to get h and to make the teacher's loss of it: what it needs, and what it gives.

    Attributes:
      name: its name in recipes and constructors.
      estimate: `Measurements` -> h: () for the whole step, (B_u,) for the labels drawn, or (B_u, K)
        for all labels. None: h is 0, and nothing is measured.
      teacher_loss: (h, ŷ (B_u, K), the teacher's logits (B_u, K), batch factor) -> loss ().
      losses: whether `estimate` reads `old` and `new`. They are None otherwise.
      gradient: whether it reads `labeled`, which is empty otherwise.
      factor: whether it reads `factor`, which is None otherwise. The student's optimizer must have
        a `training.optimizers.linear_factor` then, or the estimate is an approximation.
      second_order: whether it calls `per_label`, which takes a gradient of the student's gradient.
      soft_labels: whether it also has a gradient (or none on purpose) with soft pseudo-labels.
      baseline: whether the moving average of h is subtracted; see `center`.
      batch_factor: whether the default of the batch factor is B_u. It is 1 otherwise.
    """

    name: str
    estimate: Callable[[Measurements], tf.Tensor] | None
    teacher_loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor | float], tf.Tensor] = (
        hard_loss
    )
    losses: bool = False
    gradient: bool = False
    factor: bool = False
    second_order: bool = False
    soft_labels: bool = False
    baseline: bool = True
    batch_factor: bool = False


_ALL = (
    Estimator(
        "finite_difference",
        lambda m: finite_difference(m.old, m.new),
        losses=True,
        batch_factor=True,
    ),
    Estimator(
        "dot_product",
        lambda m: dot_product(m.labeled, m.unlabeled, m.factor),
        gradient=True,
        factor=True,
        batch_factor=True,
    ),
    Estimator("cosine", lambda m: cosine(m.labeled, m.unlabeled), gradient=True),
    Estimator(
        "per_example",
        lambda m: drawn(m.per_label(), m.pseudo_labels),
        lambda h, labels, logits, _: hard_loss(h, labels, logits),
        gradient=True,
        factor=True,
        second_order=True,
    ),
    Estimator(
        "soft",
        lambda m: m.per_label(),
        lambda h, labels, logits, _: soft_loss(h, logits),
        gradient=True,
        factor=True,
        second_order=True,
        soft_labels=True,
        baseline=False,  # it would have no gradient: Σ_k b T_k = b
    ),
    Estimator(
        "release",
        lambda m: released(m.old, m.new),
        lambda h, labels, logits, _: released_loss(h, logits),
        losses=True,
        soft_labels=True,
    ),
    Estimator("none", None, soft_labels=True, batch_factor=True),
)

ESTIMATORS = {estimator.name: estimator for estimator in _ALL}
"""Estimators by name: the values of `feedback=`."""

MEASURED = {"Adam": (0.56, 0.98), "RMSProp": (0.96, 1.0), "LARS": (0.07, 0.89)}
"""Optimizer -> least and largest cosine of the true gradient and the gradient by `soft`.

`soft` has the learning rate for the factor here. The cosines are of perceptrons with 5 hidden units
at steps 1, 11 and 101 (tests/meta_pseudo_labels/test_model.py)."""


def find_estimator(name: str, pseudo_labels: str) -> Estimator:
    """Returns the estimator of that name.

    Raises:
      ValueError: an unknown name, or an estimator that has no gradient with these pseudo-labels.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"feedback must be one of {tuple(ESTIMATORS)}, got {name!r}")
    if pseudo_labels not in PSEUDO_LABELS:
        raise ValueError(f"pseudo_labels must be one of {PSEUDO_LABELS}, got {pseudo_labels!r}")
    if pseudo_labels == "soft" and not ESTIMATORS[name].soft_labels:
        raise ValueError(
            f"feedback {name!r} has no gradient with soft pseudo-labels; use feedback 'soft', or"
            " sampled pseudo-labels"
        )
    return ESTIMATORS[name]


def check_factor(
    estimator: Estimator, optimizer: str, known: bool, approximate: bool
) -> str | None:
    """Returns a warning where h is an approximation under the student's optimizer; else None.

    Args:
      estimator: the estimator in use.
      optimizer: the optimizer's name, for the message.
      known: whether `training.optimizers.linear_factor` has a factor for it.
      approximate: whether an approximation is accepted.

    Raises:
      ValueError: the estimator needs the factor, there is none, and `approximate` is False.
    """
    if not estimator.factor or known:
        return None
    if approximate:
        cosines = ", ".join(
            f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in MEASURED.items()
        )
        return (
            f"feedback {estimator.name!r} is an approximation under {optimizer}: a step of this "
            "optimizer is not a known multiple of the gradient. Cosines to the true gradient, with "
            f"perceptrons of 5 hidden units: {cosines}."
        )
    raise ValueError(
        f"feedback {estimator.name!r} needs a student's step that is a known multiple of its "
        f"gradient, which a step of {optimizer} is not. Use feedback 'finite_difference' or "
        "'cosine', or SGD without clipnorm, clipvalue, EMA overwriting and weight constraints."
    )
