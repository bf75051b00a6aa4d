"""Makes a recipe fine-tune published weights on few photographs: what the methods' recipes share.

The values were chosen on photographs, with 120 labeled and 2,000 unlabeled ones
(configs/noisy_student).
"""

from ml_collections import ConfigDict

from training.settings import FINE_TUNING

WEIGHTS = "efficientnet-lite0"
"""Published weights that are installed with the project."""

NETWORK = "lite0"
IMAGE_SIZE = 160
RATE = 0.32
"""Learning rate per 256 labeled images: 0.04 at 32."""


def start_from_published_weights(config: ConfigDict) -> None:
    """Sets the weights that a recipe's trainings start from, and a resolution that suits a CPU."""
    config.init = WEIGHTS
    config.preprocessing.image_size = IMAGE_SIZE


def fine_tune(train: ConfigDict) -> None:
    """Makes a fine-tuning of any training: a fast moving average, and fixed lower blocks."""
    train.ema_decay = 0.99
    train.update({name: declared.default for name, declared in FINE_TUNING.items()})
    train.frozen_blocks = 10  # of Lite0's 16: better than none on few images, and twice as fast


def move(network: ConfigDict) -> None:
    """Sets how a network of a fine-tuning learns: `network` has an optimizer and a schedule."""
    network.optimizer.update({"name": "sgd", "nesterov": True})
    network.schedule.base = RATE
