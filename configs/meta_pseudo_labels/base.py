"""What every Meta Pseudo Labels recipe shares (Pham et al. 2021), each value with its meaning.

The paper's own tables are in an appendix that could not be consulted; optimizers, schedules and losses have the values of the command
for CIFAR-10-4K in the release's README. The architecture is the smallest EfficientNet, the feedback this project's. A recipe imports
this, overrides what differs, and says why.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.noisy_student import base


def network(warmup_steps: int, wait_steps: int) -> ConfigDict:
    """Teacher or student: architecture, optimizer, schedule."""
    config = ConfigDict()
    config.model = base.train_section().model  # see there
    config.optimizer = base.optimizer(name="sgd", nesterov=True)
    # Waits at 0, warms up, then half a cosine to 0; `base` is the rate per 256 labelled images of a step.
    config.schedule = ConfigDict({"base": 0.1, "warmup_steps": warmup_steps, "wait_steps": wait_steps})
    return config


def train_section() -> ConfigDict:
    """The training of the pair."""
    config = ConfigDict()
    # Or reduced_meta_pseudo_labels (Appendix E): the student and a calibrator of the predictions in --pseudo_labeled (with
    # feedback="none": pseudo-labels of a fixed teacher). configs/uda/ has the teacher alone.
    config.method = "meta_pseudo_labels"
    config.teacher = network(warmup_steps=5000, wait_steps=0)
    config.student = network(warmup_steps=5000, wait_steps=3000)
    config.epochs = placeholder(float)  # of the labelled images; or
    config.steps = placeholder(int)  # optimizer steps: exactly one of the two
    config.min_steps = 0  # with epochs: at least so many steps
    config.batch_size = placeholder(int)  # labelled images a step, over all replicas; None: from their number
    config.unlabeled_ratio = 7  # unlabelled images a step, in labelled batches
    # How the student's step teaches the teacher: meta_pseudo_labels/feedback.py and docs/meta_pseudo_labels.md.
    config.feedback = "soft"  # or per_example, finite_difference, dot_product, cosine, release, none
    # True, in :paper and :release: take soft, per_example and dot_product also under lars, adam or rmsprop, with a warning.
    config.approximate_feedback = False
    config.pseudo_labels = "sampled"  # or argmax, soft
    config.feedback_weight = 1.0
    config.batch_factor = placeholder(float)  # of a scalar h; None: B_u, which makes it the true gradient; 1: eq. 12 as written
    config.baseline_decay = 0.99  # 1: no baseline
    config.supervised_weight = 1.0
    config.uda = ConfigDict({"weight": 8.0, "temperature": 0.7, "threshold": 0.6, "ramp_steps": 5000})
    config.calibrator = ConfigDict({"hidden": 128, "layers": 2})  # of `reduced`; its optimizer and schedule are the teacher's
    config.label_smoothing = 0.15
    config.weight_decay = 5e-4
    config.ema_decay = 0.995
    config.precision = "float32"  # or mixed_bfloat16, or mixed_float16, with loss scaling
    config.rematerialize = False  # True: keep the blocks' inputs only and compute the rest twice (docs/scaling.md)
    config.sync_batch_norm = True  # with more than one replica
    config.log_every = placeholder(int)  # steps; None: a twentieth of the run, at most 100
    config.checkpoint_every = placeholder(int)  # steps; None: a tenth of the run, at most 1,000
    config.evaluate_every = placeholder(int)  # steps, on the validation split; None: never
    config.keep_checkpoints = 2  # the newest; besides, the one of the best evaluation is kept
    config.keep_every = 0  # steps: checkpoints so far apart are kept for good; 0: none
    config.final_weights = "last"  # the papers'; or best: of the evaluation with the largest top-1 on the validation split
    return config


def get_config() -> ConfigDict:
    """The shared recipe; data, preprocessing, fine-tuning and evaluation have the same keys as Noisy Student's."""
    shared = base.get_config()
    config = ConfigDict(
        {
            name: shared[name]
            for name in ("seed", "smoke", "data", "expected", "preprocessing", "pseudo_label", "balance", "finetune", "evaluate")
        }
    )
    config.balance.update({"threshold": 0.0, "balance": False})  # for `reduced`: every unlabelled image once
    config.train = train_section()
    # The student afterwards, on labelled images: SGD at a fixed rate of 1e-5, batch 512, 1,000 steps for CIFAR-10 and SVHN (Section 3.2).
    config.finetune.epochs = None
    config.finetune.update({"steps": 1000, "batch_size": 512, "label_smoothing": 0.0, "labeled_augmentation": True})
    config.finetune.optimizer.update({"name": "sgd", "momentum": 0.0})
    config.finetune.schedule.base = 1e-5 / 2  # per 256 images
    return config
