"""Turns an encoded image into the pixels that a network reads, for training and evaluation.

Two styles:

- ``imagenet``: the pipeline of EfficientNet and Noisy Student. Training takes a random crop
  (Szegedy et al. 2015), evaluation the central square. Both are resized to S×S.
- ``small``: the pipeline for images of the network's own size (digits, SVHN, CIFAR): the only crop
  is that of a padded image.

Pixels stay in 0–255; the network itself subtracts its mean and divides by its standard deviation.
Everything random is a function of the example's seed, so a run that starts again sees the same
pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from cli import settings
from cli.errors import InputError
from data import autoaugment, image_ops, randaugment
from data.settings import AUTOAUGMENT, CROP_PADDING, IMAGENET_MEAN, IMAGENET_STD, PREPROCESSING
from data.transparency import decode_opaque, decode_over_white, maybe_transparent

MAX_PIXELS = 100_000_000
"""Largest number of pixels of an image, all frames of a GIF together; decoded, 300 MB. A few
kilobytes of JPEG or PNG can claim far more, and a batch of such images ends a run, or a server."""

_PIXELS = tf.TensorSpec([None, None, 3], tf.uint8)

# One seed for each kind of noise. The order is part of what a seed means: add at the end.
_CROP, _FLIP, _RANDAUGMENT, _CUTOUT, _NUM_SEEDS = range(5)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The way images become pixels; stored with a model, which is always fed as it was trained.

    Attributes:
        image_size: S, side of the square that the network reads, in pixels.
        style: "small" or "imagenet".
        mean, std: mean and standard deviation of the three channels in 0–255 units; applied inside
          the network.
        flip: mirror left-right with probability 0.5.
        pad: pixels of mirrored border from which a random S×S crop is taken (small style; 0 = off).
        randaugment_table: "noisy_student", "meta_pseudo_labels", or "autoaugment_v0". The last is
          AutoAugment instead: of the following settings it uses only the mode, and 0 layers turn it
          off.
        randaugment_layers, randaugment_magnitude, randaugment_ops, randaugment_mode,
          translate_const, cutout_const: see ``randaugment.rand_augment``.
        extra_cutout: half of the side of a square that is cut out of every image, in pixels (small
          style; 0 = off).
        crop_padding: P, see ``central_box`` (imagenet style): without noise the central S / (S + P)
          of the short side is seen.
    """

    image_size: int
    style: str = "small"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    flip: bool = False
    pad: int = 0
    randaugment_table: str = "noisy_student"
    randaugment_layers: int = 0
    randaugment_magnitude: float = 0.0
    randaugment_ops: tuple[str, ...] = ()
    randaugment_mode: str = "reference"
    translate_const: float = 100.0
    cutout_const: float = 40.0
    extra_cutout: int = 0
    crop_padding: int = CROP_PADDING

    def __post_init__(self) -> None:
        values = vars(self)
        settings.check_settings(values, PREPROCESSING, "preprocessing")
        for name, value in values.items():  # a recipe leaves it open; here it must be decided
            if value is None:
                raise InputError(f"preprocessing.{name} is not set")
        if self.style != "small" and (self.pad or self.extra_cutout):
            raise InputError(
                "preprocessing.pad and .extra_cutout belong to the small style; set them to 0"
            )
        if self.pad >= self.image_size:
            raise InputError(
                f"preprocessing.pad is {self.pad}; it must be below image_size, {self.image_size}"
            )
        table = "noisy_student" if self.randaugment_table == AUTOAUGMENT else self.randaugment_table
        randaugment.require_operations(self.randaugment_ops, table)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Builds the settings that ``to_dict`` returned.

        Raises:
            InputError: an unknown key or an impossible value.
        """
        settings.check_settings(values, PREPROCESSING, "preprocessing")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, (list, tuple)) else value
            for key, value in values.items()
        }
        return cls(**{"image_size": None, **fields})

    def weak(self) -> Preprocessing:
        """Returns the same without RandAugment and cutout; crop and flip are left as noise."""
        return dataclasses.replace(self, randaugment_layers=0, extra_cutout=0)

    def to_dict(self) -> dict[str, Any]:
        """Returns values that JSON can hold."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, BMP or the first frame of a GIF.

    Args:
        encoded: string scalar.

    Returns:
        uint8 [H, W, 3]. Gray images get three equal channels. Transparency is composed over white,
        see ``data.transparency``. 16-bit values keep their upper 8 bits. TensorFlow does not follow
        the palette of an 8-bit BMP: such a file is read as if its indices were gray levels.

    Raises:
        tf.errors.InvalidArgumentError: not an image of these formats, or a damaged one.
    """
    encoded = tf.convert_to_tensor(encoded)
    decode_kind = randaugment.switch([decode_opaque, decode_over_white], [encoded], _PIXELS)
    return decode_kind(tf.cast(maybe_transparent(encoded), tf.int32), encoded)


def resize(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Resizes by bicubic interpolation to float32 [S, S, 3]; values may pass 0 and 255 a little.

    An image of that size keeps its values exactly. The sampling is TensorFlow 1's (pixel corners,
    not centers), with which the released checkpoints were trained; ``tf.image.resize`` has none
    like it.
    """
    resized = tf.raw_ops.ResizeBicubic(
        images=image[tf.newaxis], size=[image_size, image_size], half_pixel_centers=False
    )
    return tf.reshape(resized, [image_size, image_size, 3])


def central_box(shape: tf.Tensor, image_size: int, padding: int = CROP_PADDING) -> tf.Tensor:
    """Computes the square that evaluation looks at: side int(S / (S + P) · short side).

    Args:
        shape: int32 [≥ 2], height and width first.
        image_size: S.
        padding: P.

    Returns:
        int32 [4]: top, left, height, width.
    """
    height, width = shape[0], shape[1]
    side = tf.maximum(tf.minimum(height, width) * image_size // (image_size + padding), 1)
    return tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])


def random_box(
    shape: tf.Tensor, image_size: int, seed: tf.Tensor, padding: int = CROP_PADDING
) -> tf.Tensor:
    """Draws a box of 8–100 % of the image's area, of aspect 3/4–4/3.

    If 10 attempts find none, it is the central box.

    Args:
        shape: int32 [3].
        image_size: S, for the central box.
        seed: [2].
        padding: P, for the central box.

    Returns:
        int32 [4]: top, left, height, width.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed=seed,
        min_object_covered=0.1,
        aspect_ratio_range=(3.0 / 4.0, 4.0 / 3.0),
        area_range=(0.08, 1.0),
        max_attempts=10,
    )
    box = tf.concat([begin[:2], size[:2]], axis=0)
    # The sampler returns the whole image when it gives up.
    is_whole_image = tf.reduce_all(size[:2] == shape[:2])
    return tf.where(is_whole_image, central_box(shape, image_size, padding), box)


def _crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    return image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]


def eval_image(encoded: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns the pixels of an image without any noise.

    Args:
        encoded: string scalar, see ``decode``.
        preprocessing: the settings; the settings of noise are ignored.

    Returns:
        float32 [S, S, 3] in 0–255 (bicubic resizing may pass both ends a little).
    """
    image = decode(encoded)
    if preprocessing.style == "imagenet":
        image = _crop(
            image,
            central_box(tf.shape(image), preprocessing.image_size, preprocessing.crop_padding),
        )
    return resize(image, preprocessing.image_size)


def decode_random_box(
    encoded: tf.Tensor, image_size: int, seed: tf.Tensor, padding: int = CROP_PADDING
) -> tf.Tensor:
    """Decodes a random box, see `random_box`, of an encoded image: uint8 [h, w, 3]."""

    def jpeg(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # A quarter faster than decoding everything. The outermost pixels may differ a little: their
        # color is interpolated without the neighbors outside the box. Evaluation therefore does
        # not do this.
        box = random_box(tf.io.extract_jpeg_shape(encoded), image_size, seed, padding)
        return tf.io.decode_and_crop_jpeg(encoded, box, channels=3)

    def other(encoded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        image = decode(encoded)
        return _crop(image, random_box(tf.shape(image), image_size, seed, padding))

    inputs = tf.convert_to_tensor(encoded), seed
    decode_box = randaugment.switch([other, jpeg], inputs, _PIXELS)
    return decode_box(tf.cast(tf.io.is_jpeg(encoded), tf.int32), *inputs)


def _flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    mirror = tf.random.stateless_uniform([], seed) < 0.5
    return tf.raw_ops.Reverse(tensor=image, dims=tf.stack([False, mirror, False]))


def _rand_augment(image: tf.Tensor, seed: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Applies RandAugment or AutoAugment to a uint8 image."""
    if preprocessing.randaugment_table == AUTOAUGMENT:
        return autoaugment.auto_augment(image, seed, preprocessing.randaugment_mode)
    return randaugment.rand_augment(
        image,
        seed,
        preprocessing.randaugment_layers,
        preprocessing.randaugment_magnitude,
        table=preprocessing.randaugment_table,
        ops=preprocessing.randaugment_ops,
        mode=preprocessing.randaugment_mode,
        translate_const=preprocessing.translate_const,
        cutout_const=preprocessing.cutout_const,
    )


def _pad_and_crop(image: tf.Tensor, seed: tf.Tensor, pad: int) -> tf.Tensor:
    size = image.shape[0]
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]], "REFLECT")
    offset = tf.cast(tf.random.stateless_uniform([2], seed) * (2 * pad + 1), tf.int32)  # 0 … 2 pad
    return tf.slice(padded, tf.concat([offset, [0]], axis=0), [size, size, 3])


def train_image(encoded: tf.Tensor, seed: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns the pixels of an image with the noise of training.

    Args:
        encoded: string scalar, see ``decode``.
        seed: int32 or int64 [2], of this example in this epoch; all noise follows from it.
        preprocessing: the settings. In the small style with all noise off the result is that of
          ``eval_image``.

    Returns:
        float32 [S, S, 3] in 0–255 (without RandAugment, bicubic resizing may pass both ends a
        little).
    """
    return tf.cast(train_pixels(encoded, seed, preprocessing), tf.float32)


def train_pixels(encoded: tf.Tensor, seed: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Computes ``train_image`` as uint8 after RandAugment, else as float32.

    RandAugment has made integers of the pixels. As uint8 they take a quarter of the bytes to move
    until the batch.
    """
    p = preprocessing
    seeds = tf.random.split(seed, _NUM_SEEDS)  # (4, 2)
    imagenet = p.style == "imagenet"
    image = (
        decode_random_box(encoded, p.image_size, seeds[_CROP], p.crop_padding)
        if imagenet
        else decode(encoded)
    )
    image = resize(image, p.image_size)
    if p.randaugment_layers:
        image = image_ops.to_uint8(image)  # clipped and truncated, as in the release
    if imagenet and p.flip:
        image = _flip(image, seeds[_FLIP])
    if p.randaugment_layers:
        image = _rand_augment(image, seeds[_RANDAUGMENT], p)
    if imagenet:
        return image
    if p.extra_cutout:
        image = image_ops.cutout(
            image, p.extra_cutout, tf.random.stateless_uniform([2], seeds[_CUTOUT])
        )
    if p.pad:
        image = _pad_and_crop(image, seeds[_CROP], p.pad)
    if p.flip:
        image = _flip(image, seeds[_FLIP])
    return image
