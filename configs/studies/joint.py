"""Labeled and pseudo-labeled images together, or one after the other?

./run_experiment.sh study --config=configs/studies/joint.py --workdir=runs/studies/joint

The question is that of Xie et al. 2020, Section 5. `apart` takes the student's steps on the
pseudo-labeled images alone, and then fine-tunes on the labeled images. The fine-tuning has the
section `finetune_student`; its values are not tuned. `apart_longer` is fine-tuned for four times
as long.
"""

from ml_collections import ConfigDict

from configs.studies import base


def get_config() -> ConfigDict:
    """Returns the study."""
    apart = ("--config.student.labeled=False",)
    return base.study(
        "Joint training",
        "Trained on labeled and pseudo-labeled images together, or on the pseudo-labeled ones"
        " alone and then fine-tuned on the labeled ones, in 200 or 800 steps.",
        claims=(
            ("joint", "apart", "joint training is better than pre-training and fine-tuning"),
            (
                "joint",
                "apart_longer",
                "joint training is better than pre-training and longer fine-tuning",
            ),
            ("apart", "teacher", "pre-training and fine-tuning is better than the teacher"),
        ),
        **base.one_student(
            joint=(), apart=apart, apart_longer=(*apart, "--config.finetune_student.epochs=800.0")
        ),
    )
