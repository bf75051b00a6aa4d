"""Functions of an exported classifier that a client can call, from bytes or pixels to answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import Preprocessing, central_box, resize
from serving.answers import NOT_FINITE, OK
from serving.images import MAX_PIXELS, prepare
from training import optimize
from training.model_dir import ModelSpec

TOP_K = 5

Outputs = dict[str, tf.Tensor]


class Classifier(tf.Module):
    """Module that is saved: the signatures, and the variables that they read.

    It holds the model's variables, not the Keras model. With the Keras model, saving would trace
    every layer for a second time, to no use for a server.

    Attributes:
      functions: signature name -> tf.function.
        `serving_default`: `image_bytes` string [N] -> `probabilities` float32 [N, K], `classes`
          int32 [N, k] (the k = min(5, K) most probable classes, best first), `labels` string [N, k]
          (their names), `status` int32 [N] (see `serving.answers`).
        `predict_images`: `images` float32 [N, H, W, 3] in 0–255 -> the same. An image with NaN or
          infinite pixels gets a status.
        `predict_images_uint8`: `images` uint8 [N, H, W, 3] -> the same.
        `embed`: `image_bytes` -> `embedding` float32 [N, C], the pooled features below the
          classifier, and `status`.
        `predict_prepared`: `images` float32 [N, S, S, 3], N at least 1, prepared as
          `serving.preprocess` does -> `logits` and `probabilities` float32 [N, K]. Other formats
          are converted from it: it has no strings, no resizing and no branches.
    """

    def __init__(
        self,
        model: tf.keras.Model,
        spec: ModelSpec,
        *,
        fold: bool = False,
        weights: str = "float32",
        max_pixels: int = MAX_PIXELS,
    ):
        """Takes the built `model`, its specification, and how to store it.

        Args:
          model: float32 (N, S, S, 3) -> logits (N, K), built of layers in a graph.
          spec: how the model's images are prepared and its classes named.
          fold: whether BatchNorm is folded into the convolutions, and weights are constants.
          weights: type of the weights on disk, one of `training.optimize.WEIGHTS`. Any but float32
            makes the weights constants, too.
          max_pixels: an encoded image that declares more is not decoded; at least 1.
        """
        super().__init__(name="classifier")
        core = _core(
            optimize.fold_batch_norm(model) if fold else model, spec.preprocessing.image_size
        )
        if fold or weights != "float32":
            core = optimize.freeze(core.get_concrete_function(), weights)
        else:
            self.model_variables = list(model.variables)
        self.core = core
        self.functions = _signatures(core, spec, max_pixels)


def _core(model: tf.keras.Model, size: int) -> tf.types.experimental.GenericFunction:
    """Returns the function from images to logits and pooled features.

    It maps images float32 [N, S, S, 3], N at least 1, to float32 logits [N, K] and pooled features
    [N, C].
    """
    last = [layer for layer in model.layers if layer.weights][-1]
    if not isinstance(last, tf.keras.layers.Dense):
        raise InputError(
            f"{model.name}: its last layer with weights is {last.name}; the export needs a Dense"
            " layer, the classifier"
        )
    # The classifier's input is the pooled features, which `embed` returns.
    both = tf.keras.Model(model.inputs, [model.output, last.input])

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32)])
    def core(images: tf.Tensor) -> list[tf.Tensor]:
        logits, features = both(images, training=False)  # (N, K), (N, C)
        return [tf.cast(logits, tf.float32), tf.cast(features, tf.float32)]

    return core


def _network(
    core: Callable[[tf.Tensor], Sequence[tf.Tensor]], size: int
) -> tf.types.experimental.GenericFunction:
    """Returns the function images [N, S, S, 3] -> probabilities [N, K] and pooled features [N, C].

    It takes every N.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32)])
    def network(images: tf.Tensor) -> list[tf.Tensor]:
        count = tf.shape(images)[0]
        # In a session TensorFlow fuses convolutions, and a fused one gives 0 images a wrong shape.
        images = tf.cond(count > 0, lambda: images, lambda: tf.zeros([1, size, size, 3]))
        logits, features = core(images)
        return [tf.nn.softmax(logits)[:count], features[:count]]

    return network


def _signatures(
    core: Callable[[tf.Tensor], Sequence[tf.Tensor]], spec: ModelSpec, max_pixels: int
) -> dict[str, Callable[..., Outputs]]:
    preprocessing, size = spec.preprocessing, spec.preprocessing.image_size
    network = _network(core, size)

    def answer(images: tf.Tensor, status: tf.Tensor) -> Outputs:
        probabilities = tf.ensure_shape(network(images)[0], [None, spec.num_classes])  # (N, K)
        classes = tf.math.top_k(probabilities, min(TOP_K, spec.num_classes)).indices  # (N, k)
        labels = tf.gather(tf.constant(spec.label_names), classes)  # (N, k)
        status = _finite(status, probabilities)
        good = (status == OK)[:, tf.newaxis]  # an image that is none must not look like an answer
        return {
            "probabilities": tf.where(good, probabilities, 0.0),
            "classes": tf.where(good, classes, -1),
            "labels": tf.where(good, labels, ""),
            "status": status,
        }

    def pixels(images: tf.Tensor) -> Outputs:
        spec_of_one = tf.TensorSpec([size, size, 3], tf.float32)
        prepared = tf.map_fn(
            lambda image: eval_pixels(image, preprocessing), images, fn_output_signature=spec_of_one
        )
        status = tf.fill(tf.shape(images)[:1], OK)
        return answer(prepared, _finite(status, images) if images.dtype.is_floating else status)

    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")

    @tf.function(input_signature=[encoded])
    def serving_default(image_bytes: tf.Tensor) -> Outputs:
        return answer(*prepare(image_bytes, preprocessing, max_pixels))

    @tf.function(input_signature=[encoded])
    def embed(image_bytes: tf.Tensor) -> Outputs:
        images, status = prepare(image_bytes, preprocessing, max_pixels)
        features = network(images)[1]  # (N, C)
        status = _finite(status, features)
        return {
            "embedding": tf.where((status == OK)[:, tf.newaxis], features, 0.0),
            "status": status,
        }

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def predict_images(images: tf.Tensor) -> Outputs:
        return pixels(images)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def predict_images_uint8(images: tf.Tensor) -> Outputs:
        return pixels(images)

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, name="images")])
    def predict_prepared(images: tf.Tensor) -> Outputs:
        logits = tf.ensure_shape(core(images)[0], [None, spec.num_classes])  # (N, K)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    return {
        "serving_default": serving_default,
        "predict_images": predict_images,
        "predict_images_uint8": predict_images_uint8,
        "embed": embed,
        "predict_prepared": predict_prepared,
    }


def _finite(status: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns `status` [N] with NOT_FINITE instead of OK for rows that are not finite.

    Such a row of `values` [N, …] holds NaN or infinity.
    """
    finite = tf.reduce_all(tf.math.is_finite(values), axis=tf.range(1, tf.rank(values)))  # (N,)
    return tf.where(finite | (status != OK), status, NOT_FINITE)


def eval_pixels(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Applies `data.preprocessing.eval_image` to an image that is decoded already.

    Args:
      image: uint8 or float32 [H, W, 3] in 0–255, any H and W.
      preprocessing: the model's.

    Returns:
      float32 [S, S, 3], cropped and resized as in evaluation.
    """
    size = preprocessing.image_size
    if preprocessing.style == "imagenet":
        top, left, height, width = tf.unstack(
            central_box(tf.shape(image), size, preprocessing.crop_padding)
        )
        image = image[top : top + height, left : left + width]
    return resize(image, size)
