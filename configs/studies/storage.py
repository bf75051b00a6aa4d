"""Does a student learn less from pseudo-labels stored as the top k classes?

./run_experiment.sh study --config=configs/studies/storage.py --workdir=runs/studies/storage

The comparison is with whole distributions.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    return base.study(
        "Stored pseudo-labels",
        "All classes as float16, or the most probable ones and what they leave of 1, spread"
        " evenly.",
        claims=(
            ("full", "top3", "whole distributions are better than the top 3"),
            ("full", "top1", "whole distributions are better than the top 1"),
        ),
        **base.one_student(
            full=("--config.pseudo_label_1.top_k=0",),
            top3=("--config.pseudo_label_1.top_k=3",),
            top1=("--config.pseudo_label_1.top_k=1",),
        ),
    )
