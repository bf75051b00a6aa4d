"""What every Noisy Student recipe shares: the paper's values (Xie et al. 2020, Section 3.1), each with its meaning.

A recipe imports this, overrides what differs, and says why.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def optimizer(**overrides: Any) -> ConfigDict:
    """An optimizer: training/optimizers.py."""
    config = ConfigDict()
    config.name = "rmsprop"  # or sgd, lars, adam
    config.momentum = 0.9
    config.nesterov = False  # of sgd
    config.trust_coefficient = 1e-3  # of lars
    config.clip_norm = 0.0  # of the whole gradient; 0: no clipping
    config.decoupled_weight_decay = 0.0  # times the rate, outside of the gradient (AdamW); `weight_decay` is the one in the loss
    config.update(overrides)
    return config


def train_section(**overrides: Any) -> ConfigDict:
    """One training: a teacher, a student, or a fine-tuning."""
    config = ConfigDict()
    config.method = "supervised"  # or another name of workflow/methods.py
    # `name`: a name of training/architectures.py, or package.module:function, a builder of your own
    # (docs/extending.md). The others are arguments of its builder; None means the builder's default.
    config.model = ConfigDict(
        {
            "name": "b0",
            "width": placeholder(float),
            "depth": placeholder(float),
            "dropout": placeholder(float),
            "survival_probability": placeholder(float),  # EfficientNet: 0.8 (the paper)
            "stem_stride": placeholder(int),
            "strides": placeholder(tuple),
            "batch_norm_momentum": placeholder(float),  # 0.99
        }
    )
    config.epochs = placeholder(float)  # of the labelled images; or
    config.steps = placeholder(int)  # optimizer steps: exactly one of the two
    config.min_steps = 0  # with epochs: at least so many steps
    config.batch_size = placeholder(int)  # labelled images a step, over all replicas; None: from their number
    config.unlabeled_ratio = 0  # unlabelled images a step, in labelled batches (the paper: 1 to 28)
    # False: a student sees the pseudo-labelled images alone, and the loop fine-tunes it on the labelled ones, by section finetune_student.
    config.labeled = True
    config.optimizer = optimizer()
    # `base` is the rate per 256 labelled images of a step.
    # A cosine's warm-up is at most a tenth of the run.
    config.schedule = ConfigDict({"name": "exponential", "base": 0.016, "warmup_epochs": 5.0, "decay_epochs": 2.4, "decay_rate": 0.97})
    config.loss_normalization = "joint"  # or algorithm_1, release
    config.pseudo_labels = "soft"  # or hard
    config.temperature = 1.0  # of soft pseudo-labels
    config.online = False  # True: the teacher labels within the step, from --teacher; no threshold, no balancing, and more time a step
    config.label_data_sample_prob = 1.0  # below 1: a labelled image counts with this probability only; rate and epochs stay
    config.label_smoothing = 0.1
    config.mixup = 0.0  # α of MixUp on labelled images; 0: off. Beyond the paper, as the next one; with both, each for half of the batches
    config.cutmix = 0.0  # α of CutMix
    config.labeled_augmentation = True  # False: the images as for evaluation, without crop, flip and RandAugment
    config.unlabeled_augmentation = True  # the same; off in the ablation of the paper's Table 6, as the next one
    config.unlabeled_model_noise = True  # dropout and stochastic depth on unlabelled images
    config.weight_decay = 1e-5
    config.ema_decay = 0.9999
    config.frozen_blocks = 0  # with --init: so many first blocks, and the stem, stay as they are
    config.precision = "float32"  # or mixed_bfloat16, or mixed_float16, with loss scaling
    config.rematerialize = False  # True: keep the blocks' inputs only and compute the rest twice (docs/scaling.md)
    config.accumulation = 1  # parts of each batch whose gradients are added up before the step (docs/scaling.md)
    config.sync_batch_norm = True  # with more than one replica
    config.log_every = placeholder(int)  # steps; None: a twentieth of the run, at most 100
    config.checkpoint_every = placeholder(int)  # steps; None: a tenth of the run, at most 1,000
    config.evaluate_every = placeholder(int)  # steps, on the validation split; None: never
    config.keep_checkpoints = 2  # the newest; besides, the one of the best evaluation is kept
    config.keep_every = 0  # steps: checkpoints so far apart are kept for good; 0: none
    config.final_weights = "last"  # the papers'; or best: of the evaluation with the largest top-1 on the validation split
    config.update(overrides)
    return config


SMALL = {"width": 0.5, "depth": 0.2, "stem_stride": 1, "strides": (1, 2, 2, 1, 1, 1, 1)}
"""Of `model`: a small EfficientNet, for images of 16 to 64 pixels."""


def get_config() -> ConfigDict:
    """The shared recipe."""
    config = ConfigDict()
    config.seed = 0
    config.smoke = False  # True: one tiny step of every training; see training/smoke.py
    config.data = ConfigDict(
        {
            # Where a location ([FORMAT:]PATH, docs/data.md) names no format: image_folder, tfrecord, tar, tfds, imagenet, cifar10, svhn;
            # or digits, which are embedded. The flag --source.
            "source": "image_folder",
            "labeled": placeholder(str),  # the flag --labeled
            "unlabeled": placeholder(str),  # the flag --unlabeled
            "test": placeholder(str),  # the flag --test; None: test_fraction of the labelled images is held out
            "pseudo_labeled": placeholder(str),  # the flag --pseudo_labeled: shards that the release made
            "test_fraction": 0.2,
            "test_seed": 0,  # of the images held out for the test
            "validation_size": 0,  # labelled images set aside for choosing hyper-parameters
            "labeled_per_class": placeholder(int),  # a class-balanced subset; None: all
            "labeled_as_unlabeled": "nothing",  # labelled images that are unlabelled ones too: nothing, rest (those not in the subset), all
            "near_duplicates": True,  # images that look alike count as copies (docs/data.md); identical ones count in any case
            "on_error": "fail",  # what an unreadable image or record does: fail, or skip (and be listed)
            "use_as_prepared": False,  # True: use a finished data directory though its images have changed since
            "num_shards": placeholder(int),  # None: one for 2,000 images, at most 16,384
            "label_offset": 0,  # stored label minus class, in TFRecords read and written
            # digits only:
            "test_size": 400,
            "out_of_domain": 0,
        }
    )
    # What a full copy of the data holds, for a --dry_run before the data are there.
    config.expected = ConfigDict({"labeled": placeholder(int), "unlabeled": placeholder(int), "classes": placeholder(int)})
    config.preprocessing = ConfigDict(
        {
            "image_size": placeholder(int),  # None: from the median size of the images
            "style": "imagenet",  # or small
            "mean": (0.485 * 255, 0.456 * 255, 0.406 * 255),
            "std": (0.229 * 255, 0.224 * 255, 0.225 * 255),
            "flip": True,
            "pad": 0,
            "randaugment_table": "noisy_student",  # or meta_pseudo_labels, autoaugment_v0
            "randaugment_layers": 2,
            "randaugment_magnitude": 27.0,
            "randaugment_ops": (),  # () is all of the table
            "randaugment_mode": "reference",
            "translate_const": 100.0,
            "cutout_const": 40.0,
            "extra_cutout": 0,
            "crop_padding": 32,  # evaluation sees the central S / (S + 32) of the short side; the small style all of it
        }
    )
    config.teacher = train_section()
    config.student = train_section(method="noisy_student", unlabeled_ratio=3)  # `student_2`, ... override it for that iteration
    # On unaugmented labelled images, from the weights (and architecture) of --init; the paper: 1.5 epochs at a larger resolution.
    config.finetune = train_section(epochs=1.5, labeled_augmentation=False, label_smoothing=0.1)
    config.finetune.schedule.update({"name": "constant", "base": 0.0002, "warmup_epochs": 0.0})  # about the end of the student's schedule
    # Whatever of `preprocessing` is to differ; None keeps it. Mean and standard deviation are those of --init. With
    # labeled_augmentation=True the noise is crop and flip, without RandAugment.
    config.finetune.preprocessing = ConfigDict({"randaugment_layers": 0, "image_size": placeholder(int)})
    config.finetune_student = train_section(epochs=20.0)  # of students with labeled=False
    config.finetune_student.schedule.update({"name": "cosine", "base": 0.004, "warmup_epochs": 0.0})
    config.finetune_last = False  # fine-tune the last student, then evaluate and export that
    config.iterations = 3  # with patience: at most
    # Stop after so many students in a row that are no better on the validation split than one before, and serve the best; None: never.
    config.patience = placeholder(int)
    config.student_init = "scratch"  # or teacher: its weights, and its architecture
    # top_k 0: the whole distribution, as float16. views: copies of an image, with the noise of training, over which the teacher's
    # probabilities are averaged, beyond the paper; 0: the clean image alone, as in the paper. model_noise: dropout and stochastic depth
    # in the teacher; with views=1 the noised teacher of the paper's Table 6. calibrate, beyond the paper: temper the probabilities as suits
    # the validation split (workflow/calibration.py). For speed (`./run_benchmarks.sh pseudo_label`) there are optimize, which folds
    # BatchNorm into the convolutions, and precision: as in training.
    config.pseudo_label = ConfigDict(
        {
            "batch_size": 128,
            "top_k": 0,
            "views": 0,
            "model_noise": False,
            "calibrate": False,
            "precision": "float32",
            "optimize": False,
        }
    )
    # Kept are confidences above threshold and up to max_confidence. images_per_class: 130,000 in the paper; None: the median class's number
    # of images kept. fraction: of the unlabelled images, drawn by seed, before all that. Beyond the paper: share_per_class: of the images
    # above the threshold only the most confident share of each class, which is a threshold of its own for each.
    config.balance = ConfigDict(
        {
            "threshold": 0.3,
            "max_confidence": 1.0,
            "images_per_class": placeholder(int),
            "balance": True,
            "fraction": 1.0,
            "share_per_class": 1.0,
        }
    )
    config.evaluate = ConfigDict({"batch_size": 128, "split": "test"})  # the loop's split; validation for choosing hyper-parameters
    return config
