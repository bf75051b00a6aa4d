"""Base of the methods' Keras models: the classifier that is kept, its average and its metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from training import layer_rates
from training.ema import ExponentialMovingAverage
from training.layer_rates import LayerRates
from training.losses import cross_entropy, one_hot
from training.optimizers import learning_rate, loss_scale
from training.rematerialization import training_pass


class Trainer(tf.keras.Model):
    """A Keras model around the classifier that it trains. Evaluation is that of the classifier.

    Attributes:
      model: the classifier.
      forward: the classifier in training mode, images -> logits.
      ema: the classifier's averaged weights: `with trainer.ema.swapped(): trainer.evaluate(...)`.
        The subclass updates it.
      logged: metrics by name, updated by the subclass's `train_step`.
      layer_rates: factors of the classifier's steps, or None; see `set_layer_rates`.
      examples: number of examples evaluated.

    Args:
      model: a built Keras classifier, images -> logits (B, K).
      ema_decay: decay of the moving average; see `ExponentialMovingAverage`.
      rematerialize: whether `forward` keeps only the inputs of the model's blocks; see
        `training.rematerialization`.
      logged: names of the metrics of a training step. They include "loss" and "top1", but not the
        norms of `measured_update`.
      name: name of the Keras model.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        *,
        ema_decay: float,
        rematerialize: bool,
        logged: tuple[str, ...],
        name: str,
    ):
        # Images stay float32 until the network has normalized them.
        super().__init__(name=name, autocast=False)
        # Metrics are sums over all replicas already. Keras would add them up once more.
        self.distribute_reduction_method = "first"
        check_classifier(model, "model")
        self.model = model
        self.forward = training_pass(model, rematerialize)
        self.ema = ExponentialMovingAverage(model.variables, ema_decay)
        norms = ("gradient_norm", "parameter_norm", "update_norm")
        self.logged = {name: tf.keras.metrics.Mean(name) for name in (*logged, *norms)}
        self.examples = tf.keras.metrics.Sum("examples")
        self.layer_rates: LayerRates | None = None

    def set_layer_rates(self, decay: float = 1.0, head_steps: int = 0) -> None:
        """Makes the steps of deeper layers smaller, and the classifier learn alone at first.

        Call before the first step. A checkpoint does not hold these settings.

        Args:
          decay: factor of the learning rate from one block to the block below it, in (0, 1].
          head_steps: number of first steps in which only the classifier moves.

        Raises:
          InputError: decay is below 1, and the model has no blocks; see `training.layer_rates`.
        """
        self.layer_rates = layer_rates.find(self.model, decay, head_steps)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        weighted_metrics: Any = None,
        **options: Any,
    ) -> None:
        """Takes an optimizer, and Keras's options of how a step runs.

        Keras wraps the optimizer in a `LossScaleOptimizer` under mixed_float16.

        Raises:
          ValueError: a loss, metrics or their weights are given, which the method's step would not
            use. Or a network was made under mixed_float16, and this trainer was not.
        """
        unused = {
            "loss": loss,
            "metrics": metrics,
            "loss_weights": loss_weights,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in unused.items():
            if value is not None and value != []:
                raise ValueError(
                    f"{type(self).__name__}.compile does not use {name}=: the losses are the "
                    "method's own (see the class's arguments), and evaluate gives loss and top1. "
                    "For others compile and evaluate trainer.model"
                )
        # The empty list avoids Keras's warning that `test_step` weighs the examples itself (0 for
        # padding).
        super().compile(optimizer=optimizer, weighted_metrics=[], **options)
        layers = [
            layer
            for module in (self.model, *self._others)
            for layer in module.submodules
            if isinstance(layer, tf.keras.layers.Layer)
        ]
        if loss_scale(self.optimizer) is None and any(
            layer.compute_dtype == "float16" for layer in layers
        ):
            raise ValueError(
                f"a network was made under mixed_float16; make {type(self).__name__}, whose losses"
                " must be scaled, under it too"
            )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> tf.keras.callbacks.History:
        """Trains as Keras's fit.

        The progress bar shows losses and top1; the logs have all metrics.
        """
        if verbose and not isinstance(callbacks, tf.keras.callbacks.CallbackList):
            callbacks = tf.nest.flatten(callbacks) if callbacks else []
            if not any(isinstance(c, tf.keras.callbacks.ProgbarLogger) for c in callbacks):
                callbacks = [*callbacks, ProgbarLogger()]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *arguments, **options)

    def save(self, *arguments: Any, **options: Any) -> Any:
        """Refuses to save the training step: the classifier in it is what is kept.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} is a training step around a classifier; save trainer.model "
            "(within `with trainer.ema.swapped():` for its averaged weights). To continue the "
            "training later save tf.train.Checkpoint(trainer=trainer)"
        )

    export = get_config = save

    def save_weights(self, filepath: Any, *arguments: Any, **options: Any) -> None:
        """Saves weights, their average and the optimizers' slots, in TensorFlow's format.

        Raises:
          ValueError: the path is of Keras's HDF5 format, which would leave the average out.
        """
        if str(filepath).endswith((".h5", ".hdf5", ".keras")) or "h5" in options.values():
            raise ValueError(
                f"{filepath}: HDF5 would leave the averaged weights out; give save_weights a path"
                " without .h5, or save trainer.model"
            )
        super().save_weights(filepath, *arguments, **options)

    @property
    def _others(self) -> tuple[tf.keras.Model, ...]:
        """Returns the networks that are trained beside the classifier."""
        return ()

    @property
    def metrics(self) -> list[tf.keras.metrics.Metric]:
        """Returns the metrics that Keras resets."""
        return [*self.logged.values(), self.examples]

    @property
    def optimizers(self) -> dict[str, tf.keras.optimizers.Optimizer]:
        """Returns the optimizers by the prefix of their settings in the log."""
        return {"": self.optimizer}

    @property
    def optimizer_settings(self) -> dict[str, float]:
        """Returns learning rates and dynamic loss scales by their names in the log.

        The learning rates are those of the step just made, the loss scales those of the next step.
        """
        settings = {
            f"{name}learning_rate": learning_rate(optimizer)
            for name, optimizer in self.optimizers.items()
        }
        scales = {
            name: loss_scale(optimizer)
            for name, optimizer in self.optimizers.items()
            if getattr(optimizer, "dynamic", False)
        }
        settings.update({f"{name}loss_scale": scale for name, scale in scales.items()})
        return {name: float(value.numpy()) for name, value in settings.items()}

    def build_optimizers(self) -> None:
        """Makes the optimizers' slots. Call in the strategy's scope.

        The slots must exist before a checkpoint is restored.
        """
        self.optimizer.build(self.model.trainable_variables)

    @contextlib.contextmanager
    def measured_update(self, gradient_norm: tf.Tensor) -> Iterator[None]:
        """Logs the norms of the gradient, the weights and their move, around an optimizer step.

        The step is that of the classifier. The weights before the step live until its end, when the
        activations are gone.
        """
        before = [v.read_value() for v in self.model.trainable_variables]
        yield
        if self.layer_rates:
            step = self.optimizer.iterations
            self.layer_rates.shorten(self.model.trainable_variables, before, step)
        self.log_finite("gradient_norm", gradient_norm, self.optimizer)
        self.logged["parameter_norm"].update_state(tf.linalg.global_norm(before))
        self.logged["update_norm"].update_state(
            tf.linalg.global_norm([v - b for v, b in zip(self.model.trainable_variables, before)])
        )

    def move(self, gradients: list[tf.Tensor | None]) -> None:
        """Makes one step of the classifier and of its average.

        Args:
          gradients: gradients of this replica's share of the loss; the optimizer sums them over the
            replicas.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        # The norm is that of each replica's own mean gradient.
        with self.measured_update(replicas * tf.linalg.global_norm(gradients)):
            self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables))
        self.ema.update(self.optimizer.iterations)

    def log(self, **values: tf.Tensor) -> None:
        """Updates metrics of the training step by name."""
        for name, value in values.items():
            self.logged[name].update_state(value)

    def log_finite(
        self, name: str, value: tf.Tensor, optimizer: tf.keras.optimizers.Optimizer
    ) -> None:
        """Logs a scalar that comes from gradients.

        With a loss scale, skips values with overflowed gradients.
        """
        if loss_scale(optimizer) is None:
            self.logged[name].update_state(value)
        else:
            known = tf.math.is_finite(value)
            self.logged[name].update_state(
                tf.where(known, value, 0.0), sample_weight=tf.cast(known, tf.float32)
            )

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns logits (B, K)."""
        return self.model(images, training=training)

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Measures top-1 and cross entropy of the current weights.

        `data` is `(x, y)`, or `(x, y, weight)` with weight 0 for padding.
        """
        x, y, weight = tf.keras.utils.unpack_x_y_sample_weight(data)
        logits = tf.cast(self.model(x, training=False), tf.float32)  # (B, K)
        targets = one_hot(y, logits.shape[-1])
        self.logged["loss"].update_state(cross_entropy(targets, logits), sample_weight=weight)
        self.logged["top1"].update_state(is_correct(targets, logits), sample_weight=weight)
        self.examples.update_state(tf.ones(tf.shape(logits)[0]), sample_weight=weight)
        return {
            "loss": self.logged["loss"].result(),
            "top1": self.logged["top1"].result(),
            "examples": self.examples.result(),
        }


class ProgbarLogger(tf.keras.callbacks.ProgbarLogger):
    """Keras's progress bar with the losses and accuracies only."""

    # The class has the name of Keras's own: Keras times the hooks of callbacks with other names.

    def __init__(self) -> None:
        super().__init__(count_mode="steps")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Shows the losses and accuracies of a step (Keras's hook)."""
        super().on_train_batch_end(batch, _shown(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Shows the losses and accuracies of an epoch (Keras's hook)."""
        super().on_epoch_end(epoch, _shown(logs))


def _shown(logs: dict[str, Any] | None) -> dict[str, Any]:
    return {name: v for name, v in (logs or {}).items() if name.endswith(("loss", "top1"))}


def check_classifier(model: tf.keras.Model, name: str, *, trained: bool = True) -> int | None:
    """Returns the number of classes K of a built model, images -> logits (B, K).

    Returns None for a subclassed model: only a call would show its output.

    Args:
      model: the network.
      name: what the message calls the network.
      trained: whether it is to be trained here, and not only applied.

    Raises:
      ValueError: the model is not built, or its last layer gives probabilities or one number. Or it
        is to be trained and has its own losses.
    """
    if not model.built:
        raise ValueError(f"the {name} is not built: call it on one batch, or build it, first")
    if trained and (
        model.losses
        or any(
            getattr(layer, "activity_regularizer", None) is not None for layer in model.submodules
        )
    ):
        raise ValueError(
            f"the {name} has its own losses (regularizers, add_loss), but they are not added "
            "here; use weight_decay"
        )
    last: Any = model
    while (
        isinstance(last, tf.keras.Sequential) or getattr(last, "_is_graph_network", False)
    ) and last.layers:
        *before, last = last.layers
        if (
            before
            and isinstance(last, tf.keras.layers.Activation)
            and last.activation is tf.keras.activations.linear
        ):
            last = before[-1]  # under mixed precision the last layer is often a cast
    if isinstance(last, tf.keras.Model):
        return None
    # Name of a layer's activation, and of an operation's function.
    function = (
        f"{getattr(getattr(last, 'activation', None), '__name__', '')}"
        f" {getattr(last, 'symbol', '')}"
    )
    if isinstance(last, tf.keras.layers.Softmax) or "softmax" in function or "sigmoid" in function:
        raise ValueError(
            f"the {name} ends in probabilities (layer {last.name}); it must give logits, without"
            " softmax or sigmoid"
        )
    shape = getattr(last, "output_shape", None)
    classes = shape[-1] if isinstance(shape, tuple) and shape else None
    if classes == 1:
        raise ValueError(
            f"the {name} has one output (layer {last.name}); it must give logits (B, K), one for"
            " each of at least two classes"
        )
    return classes if isinstance(classes, int) else None


def is_correct(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns 1 where the largest logit is the largest target, else 0, float32 (B,)."""
    return tf.cast(tf.argmax(targets, -1) == tf.argmax(logits, -1), tf.float32)
