"""Study of the feedback's estimators: which one has the most signal for its noise?

./run_experiment.sh feedback_study --config=configs/experiments/feedback_study.py \
    --workdir=runs/feedback_study
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the study's values."""
    config = ConfigDict()
    config.seed = 0
    config.batch_sizes = (4, 16, 64, 256)  # B_u
    config.draws = 400  # draws of pseudo-labels for each batch
    config.batches = 5  # batches of unlabeled images; median and range are reported
    config.hidden = 32  # hidden units of teacher and student
    config.learning_rate = 0.1  # the student's
    config.labeled = 50  # labeled images, all in every step
    config.teacher_steps = 100  # steps of the teacher on these images, beforehand
    config.student_steps = 100  # steps of the student on the teacher's labels, beforehand
    return config
