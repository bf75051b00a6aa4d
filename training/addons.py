"""Optimizers of tensorflow-addons by name, as Keras optimizers of today.

The package's classes are of Keras's earlier kind. `AddonsOptimizer` takes an update rule from
there; clipping, weight decay, loss scaling, distribution and checkpoints stay those of the other
optimizers.

tensorflow-addons exists for TensorFlow up to 2.15 only. Nothing else of the project needs it, and
importing this module does not import it.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from cli.errors import InputError, one_line
from training.losses import NOT_DECAYED
from training.settings import ADDONS

PACKAGE = "tensorflow_addons"


class Rule(NamedTuple):
    """An optimizer of the package.

    Attributes:
      kind: the class's name in `tensorflow_addons.optimizers`.
      options: its arguments besides learning rate and first-moment decay.
      own_decay: the weight decay is part of the rule, and not a step of its own beside it.
    """

    kind: str
    options: dict[str, Any]
    own_decay: bool = False


RULES = {
    # The trust ratio is that of the update with its weight decay. Without both for BatchNorm.
    "lamb": Rule("LAMB", {"exclude_from_weight_decay": [NOT_DECAYED]}, own_decay=True),
    # β2 of its authors' code. The learning rate is within the momentum, as in Keras's SGD. The
    # class decays all variables or none, so it decays none here.
    "novograd": Rule("NovoGrad", {"beta_2": 0.98}),
    "radam": Rule("RectifiedAdam", {}),
    "adabelief": Rule("AdaBelief", {"rectify": False}),
}
"""Gives the rule of each name of `training.settings.ADDONS`.

Sources: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020; Ginsburg et al.,
"Stochastic Gradient Methods with Layer-wise Adaptive Moments", 2019; Liu et al., "On the Variance
of the Adaptive Learning Rate and Beyond", ICLR 2020; Zhuang et al., "AdaBelief Optimizer", NeurIPS
2020.
"""
assert tuple(RULES) == ADDONS


def require(name: str) -> None:
    """Raises InputError where the optimizer `name` is of tensorflow-addons, and that is not installed."""
    if name in ADDONS and importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"optimizer.name={name} is of the package tensorflow-addons, which is not installed and"
            " exists for TensorFlow up to 2.15 only; take rmsprop, sgd, lars or adam, or Python"
            " 3.9 to 3.11 with TensorFlow 2.15"
        )


def build(
    name: str, learning_rate: Any, momentum: float, decoupled_weight_decay: float, **options: Any
) -> AddonsOptimizer:
    """Builds an optimizer of the package.

    Args:
      name: one of `RULES`.
      learning_rate: a number or a schedule over optimizer steps.
      momentum: decay of the first moment, β1, in [0, 1).
      decoupled_weight_decay: λ; see `training.optimizers.build`. LAMB adds λ·θ to the update before
        it takes the trust ratio, as its paper does.
      **options: Keras's, such as `global_clipnorm`.

    Raises:
      InputError: the package is not there, or cannot be imported.
    """
    require(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the package's end of life, which the documentation states
            import tensorflow_addons
    except Exception as error:
        raise InputError(
            f"optimizer.name={name}: tensorflow-addons cannot be imported ({one_line(error)})"
        ) from error
    rule = RULES[name]
    own = {"weight_decay": decoupled_weight_decay} if rule.own_decay else {}
    beside = None if rule.own_decay else decoupled_weight_decay or None
    legacy = getattr(tensorflow_addons.optimizers, rule.kind)
    named = type(rule.kind, (AddonsOptimizer,), {})  # messages name an optimizer by its class
    made: AddonsOptimizer = named(
        lambda rate: legacy(rate, beta_1=momentum, **rule.options, **own),
        learning_rate,
        name=rule.kind,
        weight_decay=beside,
        **options,
    )
    return made


class _Legacy:
    """An optimizer of Keras's earlier kind, whose slots belong to another one. A plain object: no checkpoint looks into it."""

    def __init__(
        self,
        rule: Any,
        owner: AddonsOptimizer,
        steps: tf.Variable,
        variables: Sequence[tf.Variable],
    ):
        self.rule, self.owner = rule, owner
        self.slots: dict[tuple[str, Any], tf.Variable] = {}
        self.shared: dict[Any, dict[str, tf.Tensor]] = {}
        rule.iterations = steps
        rule.add_slot, rule.get_slot = (
            self._add_slot,
            lambda var, name: self.slots[name, owner._var_key(var)],
        )
        rule._create_slots(variables)
        rule._create_hypers()

    def _add_slot(self, var: tf.Variable, slot_name: str, initializer: Any = "zeros") -> None:
        shape = initializer.shape if tf.is_tensor(initializer) else var.shape
        start = tf.zeros(shape, var.dtype)  # all slots of the package's rules start there
        slot = self.owner.add_variable_from_reference(
            var, slot_name, shape=shape, initial_value=start
        )
        self.slots[slot_name, self.owner._var_key(var)] = slot

    def update(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable. What the rule can compute once for all variables of a device and a type, it computes once."""
        options = {}
        if "apply_state" in self.rule._dense_apply_args:
            key = (variable.device, variable.dtype.base_dtype)
            if key not in self.shared:
                self.shared[key] = {}
                self.rule._prepare_local(*key, self.shared)
            options["apply_state"] = self.shared
        self.rule._resource_apply_dense(gradient, variable, **options)


class AddonsOptimizer(tf.keras.optimizers.Optimizer):
    """A Keras optimizer whose update rule is that of an optimizer of Keras's earlier kind.

    The rule counts the steps that it made. A step that a loss scale leaves out counts for the
    learning rate, and not for the rule's corrections of its moments.

    Args:
      make: (learning rate, a function without arguments) -> the optimizer of the earlier kind.
      learning_rate: a number or a schedule over optimizer steps.
      name: of the optimizer.
      **options: Keras's, such as `weight_decay` and `global_clipnorm`.
    """

    def __init__(self, make: Callable[[Any], Any], learning_rate: Any, name: str, **options: Any):
        super().__init__(name=name, jit_compile=False, **options)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._make = make

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the slots of each variable, and the count of the rule's steps."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._steps = self.add_variable(shape=[], dtype=tf.int64, name="steps")
        self._legacy = _Legacy(self._make(lambda: self.learning_rate), self, self._steps, var_list)

    def _distributed_apply_gradients_fn(
        self, distribution: Any, grads_and_vars: Any, **kwargs: Any
    ) -> Any:
        self._legacy.shared = {}  # tensors of the graph that is traced now
        result = super()._distributed_apply_gradients_fn(distribution, grads_and_vars, **kwargs)
        self._steps.assign_add(1)
        return result

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        self._legacy.update(tf.convert_to_tensor(gradient), variable)

    def get_config(self) -> dict[str, Any]:
        """Keras's config; for reading only, since the rule is a function."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
        }
