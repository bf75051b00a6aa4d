"""Meta Pseudo Labels on scikit-learn's handwritten digits: 50 labelled images, the same data as Noisy Student's recipe.

    ./run_prepare_data.sh --config=configs/meta_pseudo_labels/digits.py --workdir=W/data
    ./run_meta_pseudo_labels.sh --config=configs/meta_pseudo_labels/digits.py --data=W/data --workdir=W/student
    ./run_finetune.sh --config=configs/meta_pseudo_labels/digits.py --data=W/data --init=W/student --workdir=W/finetuned
    ./run_evaluate.sh --config=configs/meta_pseudo_labels/digits.py --data=W/data --model=W/student,W/finetuned --workdir=W/evaluation

Not yet tuned: a starting point whose stages are known to run.
"""

from ml_collections import ConfigDict

from configs.meta_pseudo_labels import base
from configs.noisy_student import digits


def get_config() -> ConfigDict:
    """The recipe."""
    config, shared = base.get_config(), digits.get_config()
    for name in ("data", "expected", "preprocessing", "evaluate"):
        config[name] = shared[name]
    train = config.meta_pseudo_labels
    train.update({"steps": 1500, "batch_size": 50, "unlabeled_ratio": 4, "ema_decay": 0.99})
    train.uda.ramp_steps = 300
    for network, wait in (("teacher", 0), ("student", 100)):
        train[network].model = shared.student.model.copy_and_resolve_references()
        train[network].optimizer.clip_norm = 5.0
        train[network].schedule.update({"base": 0.25, "warmup_steps": 100, "wait_steps": wait})
    config.finetune.update({"steps": 200, "batch_size": 50})
    config.finetune.schedule.base = 0.005
    return config
