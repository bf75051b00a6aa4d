"""FixMatch with the values of a UDA recipe: network, optimizer, batch size and steps."""

from ml_collections import ConfigDict


def from_uda(config: ConfigDict) -> ConfigDict:
    """Turns a UDA recipe into one of FixMatch; threshold and weight are the paper's."""
    train = config.train
    train.method = "fixmatch"
    del train.uda, train.supervised_weight
    train.threshold = 0.95  # τ, least confidence of a pseudo-label
    train.unlabeled_weight = 1.0  # λ_u
    train.label_smoothing = 0.0  # of the labeled examples; the paper has none
    return config
