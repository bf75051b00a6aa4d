"""UDA with the values of a Meta Pseudo Labels recipe: that recipe's teacher, trained alone.

The experiments are those of Pham et al. 2021, Tables 2 and 3.
"""

from ml_collections import ConfigDict

OF_THE_PAIR = (
    "teacher",
    "student",
    "feedback",
    "approximate_feedback",
    "pseudo_labels",
    "feedback_weight",
)
OF_THE_PAIR = (*OF_THE_PAIR, "batch_factor", "baseline_decay", "calibrator")


def teacher_alone(config: ConfigDict) -> ConfigDict:
    """Returns a Meta Pseudo Labels recipe that trains its teacher alone, by UDA."""
    values = dict(config.train.items(preserve_field_references=True))
    network = values["teacher"]
    config.train = ConfigDict(
        {key: value for key, value in values.items() if key not in OF_THE_PAIR}
    )
    config.train.method = "uda"
    for key in ("model", "optimizer", "schedule"):
        config.train[key] = network[key]
    return config
