"""FixMatch on scikit-learn's handwritten digits: 50 labeled images, the data of Noisy Student's recipe.

    ./run_prepare_data.sh --config=configs/fixmatch/digits.py --workdir=W/data
    ./run_train.sh --config=configs/fixmatch/digits.py --data=W/data --workdir=W/student

Threshold and weight are the paper's; network, optimizer, batch and steps those of configs/uda/digits.py.
"""

from ml_collections import ConfigDict

from configs.uda import digits


def get_config() -> ConfigDict:
    """Returns the recipe."""
    config = digits.get_config()
    train = config.train
    train.method = "fixmatch"
    del train.uda, train.supervised_weight
    train.threshold = 0.95  # τ, least confidence of a pseudo-label
    train.unlabeled_weight = 1.0  # λ_u
    train.label_smoothing = 0.0  # of the labeled examples; the paper has none
    return config
