"""Optimizers of tensorflow-addons by name, as Keras optimizers of today.

The package's classes are legacy Keras optimizers. `AddonsOptimizer` takes only the update rule from
such a class. Clipping, weight decay, loss scaling, distribution and checkpoints work as for the
project's other optimizers.

tensorflow-addons exists for TensorFlow up to 2.15 only. Nothing else in the project needs it, and
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
      kind: name of the class in `tensorflow_addons.optimizers`.
      options: arguments of the class besides learning rate and first-moment decay.
      own_decay: whether the rule includes the weight decay. False: weight decay is a separate step.
    """

    kind: str
    options: dict[str, Any]
    own_decay: bool = False


RULES = {
    # The trust ratio is that of the update with its weight decay. BatchNorm gets neither.
    "lamb": Rule("LAMB", {"exclude_from_weight_decay": [NOT_DECAYED]}, own_decay=True),
    # β2 is that of the authors' code. The momentum buffer includes the learning rate, as in Keras's
    # SGD. The class decays all variables or none, so it decays none here.
    "novograd": Rule("NovoGrad", {"beta_2": 0.98}),
    "radam": Rule("RectifiedAdam", {}),
    "adabelief": Rule("AdaBelief", {"rectify": False}),
}
"""Update rules by the names in `training.settings.ADDONS`.

Sources: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020; Ginsburg et al.,
"Stochastic Gradient Methods with Layer-wise Adaptive Moments", 2019; Liu et al., "On the Variance
of the Adaptive Learning Rate and Beyond", ICLR 2020; Zhuang et al., "AdaBelief Optimizer", NeurIPS
2020.
"""
assert tuple(RULES) == ADDONS


def require(name: str) -> None:
    """Raises InputError if the optimizer `name` needs tensorflow-addons, which is not installed."""
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
      **options: options of Keras optimizers, such as `global_clipnorm`.

    Raises:
      InputError: the package is not installed, or cannot be imported.
    """
    require(name)
    try:
        with warnings.catch_warnings():
            # The package warns of its end of life, which the documentation states.
            warnings.simplefilter("ignore")
            import tensorflow_addons
    except Exception as error:
        raise InputError(
            f"optimizer.name={name}: tensorflow-addons cannot be imported ({one_line(error)})"
        ) from error
    rule = RULES[name]
    decay = {"weight_decay": decoupled_weight_decay} if rule.own_decay else {}
    beside = None if rule.own_decay else decoupled_weight_decay or None
    legacy = getattr(tensorflow_addons.optimizers, rule.kind)
    named = type(rule.kind, (AddonsOptimizer,), {})  # messages name an optimizer by its class
    made: AddonsOptimizer = named(
        lambda rate: legacy(rate, beta_1=momentum, **rule.options, **decay),
        learning_rate,
        name=rule.kind,
        weight_decay=beside,
        **options,
    )
    return made


class _Legacy:
    """A legacy Keras optimizer with slots that belong to another optimizer.

    It is a plain object, so that checkpoints do not look into it.
    """

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
        start = tf.zeros(shape, var.dtype)  # all slots of the package's rules start at 0
        slot = self.owner.add_variable_from_reference(
            var, slot_name, shape=shape, initial_value=start
        )
        self.slots[slot_name, self.owner._var_key(var)] = slot

    def update(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable.

        If the rule can share values among all variables of one device and dtype, computes them
        once.
        """
        options = {}
        if "apply_state" in self.rule._dense_apply_args:
            key = (variable.device, variable.dtype.base_dtype)
            if key not in self.shared:
                self.shared[key] = {}
                self.rule._prepare_local(*key, self.shared)
            options["apply_state"] = self.shared
        self.rule._resource_apply_dense(gradient, variable, **options)


class AddonsOptimizer(tf.keras.optimizers.Optimizer):
    """A Keras optimizer with the update rule of a legacy Keras optimizer.

    The rule counts the steps that it made. A step that loss scaling skips counts for the learning
    rate, but not for the rule's corrections of its moments.

    Args:
      make: function that takes the learning rate, as a function without arguments, and returns the
        legacy optimizer.
      learning_rate: a number or a schedule over optimizer steps.
      name: name of the optimizer.
      **options: options of Keras optimizers, such as `weight_decay` and `global_clipnorm`.
    """

    def __init__(self, make: Callable[[Any], Any], learning_rate: Any, name: str, **options: Any):
        super().__init__(name=name, jit_compile=False, **options)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._make = make

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the slots of each variable and the counter of the rule's steps."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._built = True
        self._steps = self.add_variable(shape=[], dtype=tf.int64, name="steps")
        self._legacy = _Legacy(self._make(lambda: self.learning_rate), self, self._steps, var_list)

    def _distributed_apply_gradients_fn(
        self, distribution: Any, grads_and_vars: Any, **kwargs: Any
    ) -> Any:
        self._legacy.shared = {}  # holds tensors of the graph that is traced now
        result = super()._distributed_apply_gradients_fn(distribution, grads_and_vars, **kwargs)
        self._steps.assign_add(1)
        return result

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable."""
        self._legacy.update(tf.convert_to_tensor(gradient), variable)

    def get_config(self) -> dict[str, Any]:
        """Returns Keras's config. It cannot rebuild the optimizer, since the rule is a function."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
        }
