"""AutoAugment (Cubuk et al. 2019) with the policy `v0` of EfficientNet's released code.

AutoAugment came before RandAugment. One of 25 pairs of operations is drawn. Each operation of the
pair has its own probability and its own level. The operations and what a level means are those of
`randaugment`, with larger constants: translation by 250 and cutout by 100 pixels at level 10.
"""

from __future__ import annotations

import tensorflow as tf

from data import randaugment

TRANSLATE_CONST, CUTOUT_CONST = 250.0, 100.0

# (operation, probability in tenths, level), twice: the numbers of EfficientNet's released code.
POLICY_V0: tuple[tuple[tuple[str, int, int], tuple[str, int, int]], ...] = (
    (("Equalize", 8, 1), ("ShearY", 8, 4)),
    (("Color", 4, 9), ("Equalize", 6, 3)),
    (("Color", 4, 1), ("Rotate", 6, 8)),
    (("Solarize", 8, 3), ("Equalize", 4, 7)),
    (("Solarize", 4, 2), ("Solarize", 6, 2)),
    (("Color", 2, 0), ("Equalize", 8, 8)),
    (("Equalize", 4, 8), ("SolarizeAdd", 8, 3)),
    (("ShearX", 2, 9), ("Rotate", 6, 8)),
    (("Color", 6, 1), ("Equalize", 10, 2)),
    (("Invert", 4, 9), ("Rotate", 6, 0)),
    (("Equalize", 10, 9), ("ShearY", 6, 3)),
    (("Color", 4, 7), ("Equalize", 6, 0)),
    (("Posterize", 4, 6), ("AutoContrast", 4, 7)),
    (("Solarize", 6, 8), ("Color", 6, 9)),
    (("Solarize", 2, 4), ("Rotate", 8, 9)),
    (("Rotate", 10, 7), ("TranslateY", 8, 9)),
    (("ShearX", 0, 0), ("Solarize", 8, 4)),
    (("ShearY", 8, 0), ("Color", 6, 4)),
    (("Color", 10, 0), ("Rotate", 6, 2)),
    (("Equalize", 8, 4), ("Equalize", 0, 8)),
    (("Equalize", 10, 4), ("AutoContrast", 6, 2)),
    (("ShearY", 4, 7), ("SolarizeAdd", 6, 7)),
    (("Posterize", 8, 2), ("Solarize", 6, 10)),
    (("Solarize", 6, 8), ("Equalize", 6, 1)),
    (("Color", 8, 6), ("Rotate", 4, 5)),
)


def auto_augment(image: tf.Tensor, seed: tf.Tensor, mode: str = "reference") -> tf.Tensor:
    """Applies one pair of operations.

    Args:
        image: uint8 [H, W, 3].
        seed: int32 or int64 [2]; the same seed gives the same result.
        mode: what a level means, see ``randaugment``.

    Returns:
        uint8 [H, W, 3].
    """
    # Columns: whether the operation is applied, which of its two arguments, Cutout's row and
    # column. The pair has its own draw.
    draws = randaugment.uniform([2, 4], seed)
    number = tf.cast(
        randaugment.uniform([], tf.random.split(seed, 2, alg="philox")[1]) * len(POLICY_V0),
        tf.int32,
    )
    for position in range(2):
        steps = [pair[position] for pair in POLICY_V0]
        branches = [
            randaugment.operation(name, level, mode, TRANSLATE_CONST, CUTOUT_CONST)
            for name, _, level in steps
        ]
        applied = draws[position, 0] < tf.gather(
            tf.constant([tenths / 10 for _, tenths, _ in steps]), number
        )
        branches.append(lambda image, draw: image)
        apply = randaugment.switch(
            branches, (image, draws[position]), tf.TensorSpec(image.shape, image.dtype)
        )
        image = apply(tf.where(applied, number, len(steps)), image, draws[position])
    return image
