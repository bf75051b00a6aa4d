"""Settings of trainings: network, optimizer, schedule, the run, and UDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cli.settings import Section, Setting, When
from data.settings import OWN_PREPROCESSING

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
"""Keras's policies that a network may compute in; mixed_float16 with loss scaling."""

ADDONS = ("lamb", "novograd", "radam", "adabelief")
"""Optimizers of tensorflow-addons (training/addons.py), which TensorFlow after 2.15 lacks."""

OPTIMIZERS = ("rmsprop", "sgd", "lars", "adam", *ADDONS)
SCHEDULES = ("exponential", "cosine", "constant")

PAPER = "Xie et al. 2020, Section 3.1"


def _is_no_published_network(init: str | None) -> bool:
    """Tells whether a recipe's `init` leaves the network to the recipe.

    That is so for None, and for a file, which must fit the recipe's network.
    """
    return init is None or os.path.isfile(init) or os.path.isfile(f"{init}.index")


OWN_NETWORK = (
    (
        When("/init", test=_is_no_published_network, words="None"),
        When("/student_init", ("scratch",)),
    ),
)
"""When the recipe's own network counts: the network of `init` would take its place."""

MODEL = Section(
    "The network. None stands for the architecture's own value.",
    {
        "name": Setting(
            "b0",
            "Name from training/architectures.py, or package.module:function for your own builder.",
        ),
        "width": Setting(
            None,
            "Factor of the number of channels.",
            type=float,
            none="the architecture's",
            above=0,
            when=OWN_NETWORK,
        ),
        "depth": Setting(
            None,
            "Factor of the number of layers.",
            type=float,
            none="the architecture's",
            above=0,
            when=OWN_NETWORK,
        ),
        "dropout": Setting(
            None,
            "Rate of the dropout before the classifier.",
            type=float,
            none="the architecture's",
            at_least=0,
            below=1,
        ),
        "survival_probability": Setting(
            None,
            "Stochastic depth: probability that the last block is kept.",
            type=float,
            none="the architecture's; an EfficientNet's is the paper's 0.8",
            above=0,
            at_most=1,
        ),
        "stem_stride": Setting(
            None,
            "Stride of the first convolution.",
            type=int,
            none="the architecture's",
            at_least=1,
            when=OWN_NETWORK,
        ),
        "strides": Setting(
            None,
            "Stride of each stage; 1 or 2 for each of an EfficientNet's seven stages.",
            type=tuple,
            items=int,
            none="the architecture's",
            at_least=1,
            when=OWN_NETWORK,
        ),
        "batch_norm_momentum": Setting(
            None,
            "Decay of BatchNorm's moving averages.",
            type=float,
            none="the architecture's, 0.99",
            at_least=0,
            below=1,
        ),
    },
    others="any other argument of the architecture's builder",
)

OPTIMIZER = Section(
    "The optimizer (training/optimizers.py).",
    {
        "name": Setting(
            "rmsprop",
            f"Which one. {', '.join(ADDONS)} need the package tensorflow-addons (TensorFlow 2.15).",
            choices=OPTIMIZERS,
            source=PAPER,
        ),
        "momentum": Setting(
            0.9,
            "Momentum; adam ignores it. For tensorflow-addons' optimizers, the decay of the first "
            "moment.",
            at_least=0,
            below=1,
            when=(When("name", tuple(name for name in OPTIMIZERS if name != "adam")),),
        ),
        "nesterov": Setting(
            False, "Whether sgd uses Nesterov's momentum.", when=(When("name", ("sgd",)),)
        ),
        "trust_coefficient": Setting(
            1e-3,
            "Trust coefficient of lars.",
            above=0,
            when=(When("name", ("lars",)),),
        ),
        "clip_norm": Setting(
            0.0, "Largest norm of the whole gradient; 0: no clipping.", at_least=0
        ),
        "decoupled_weight_decay": Setting(
            0.0,
            "Weight decay times the learning rate, outside of the gradient (AdamW; within lamb's"
            " trust ratio). The train section's `weight_decay` is the one in the loss.",
            at_least=0,
        ),
    },
)

BASE = Setting(0.016, "Learning rate per 256 labeled images of a step.", at_least=0, source=PAPER)

EXPONENTIAL = (When("name", ("exponential",)),)

_IN_EPOCHS = {
    "name": Setting("exponential", "Its form.", choices=SCHEDULES, source=PAPER),
    "base": BASE,
    "warmup_epochs": Setting(
        5.0,
        "Length of the linear warm-up. A cosine schedule limits it to a tenth of the run.",
        at_least=0,
        unit="epochs of the labeled images",
    ),
    "decay_epochs": Setting(
        2.4,
        "Time between two decays of the exponential schedule.",
        above=0,
        unit="epochs of the labeled images",
        source=PAPER,
        when=EXPONENTIAL,
    ),
    "decay_rate": Setting(
        0.97,
        "Factor of a decay of the exponential schedule.",
        above=0,
        source=PAPER,
        when=EXPONENTIAL,
    ),
}
_IN_STEPS = {
    "base": BASE.but(default=0.1, source="the README of Meta Pseudo Labels' release"),
    "warmup_steps": Setting(5000, "Linear warm-up.", at_least=0, unit="steps"),
    "wait_steps": Setting(
        0, "Number of steps at learning rate 0 before the warm-up.", at_least=0, unit="steps"
    ),
}

SCHEDULE = Section("The learning rate (training/schedules.py).", _IN_EPOCHS, more=_IN_STEPS)
SCHEDULE_IN_STEPS = Section(
    "The learning rate: waits at 0, warms up, then falls by half a cosine to 0.",
    _IN_STEPS,
    more=_IN_EPOCHS,
)

METHOD = Setting("supervised", "Name of the method that trains it, from workflow/methods.py.")

DURATION = {
    "epochs": Setting(
        None,
        "Length of the run. Set either epochs or steps.",
        type=float,
        none="steps says it",
        above=0,
        unit="epochs of the labeled images",
    ),
    "steps": Setting(
        None,
        "Length of the run in optimizer steps. Set either epochs or steps.",
        type=int,
        none="epochs says it",
        at_least=1,
        unit="steps",
    ),
    "min_steps": Setting(
        0,
        "With epochs: least length of the run.",
        at_least=0,
        unit="steps",
        when=(When("epochs"),),
    ),
    "batch_size": Setting(
        None,
        "Labeled images a step, over all replicas.",
        type=int,
        none="from the number of labeled images, 32 to 256",
        at_least=1,
        unit="images",
    ),
    "steps_for_batch": Setting(
        None,
        "The batch_size that steps, warm-up, wait, ramp and head_steps are meant for. Another "
        "batch_size scales them.",
        type=int,
        none="they are as given with any batch_size",
        at_least=1,
        unit="images",
    ),
    "unlabeled_ratio": Setting(
        0,
        "Unlabeled images a step, in labeled batches (1 to 28 in the Noisy Student paper).",
        at_least=0,
    ),
}
"How long a training takes, and how many images it sees."

ACCUMULATION = Setting(
    1,
    "Number of parts of each batch; their gradients are added up before the step "
    "(docs/scaling.md).",
    at_least=1,
)

LOSS = {
    "label_smoothing": Setting(0.1, "Label smoothing of labeled images.", at_least=0, below=1),
    "logit_adjustment": Setting(
        0.0,
        "Logit adjustment, for classes of unequal frequency; 0: off. The loss on labeled images"
        " adds this factor times the log of each class's share to the logits; 1 in the paper.",
        at_least=0,
        source="Menon et al. 2021, Section 5",
    ),
    "weight_decay": Setting(1e-5, "Factor of the weight decay in the loss.", at_least=0),
    "ema_decay": Setting(
        0.9999,
        "Decay of the moving average of the weights. The averaged weights are the model that is "
        "kept.",
        at_least=0,
        below=1,
    ),
}

RUN = {
    "precision": Setting(
        "float32",
        "Precision in which the network computes. mixed_float16 trains with loss scaling.",
        choices=PRECISIONS,
    ),
    "jit_compile": Setting(
        False,
        "Whether to compile the training step with XLA. The noise then differs from that without "
        "XLA (docs/scaling.md).",
    ),
    "steps_per_execution": Setting(
        1,
        "Steps between two returns to Python. The other intervals are rounded up to multiples.",
        at_least=1,
        unit="steps",
    ),
    "deterministic": Setting(
        True,
        "Whether to use deterministic operations only. Bit-exact resumption needs them.",
    ),
    "rematerialize": Setting(
        False,
        "Whether to compute the blocks' insides twice, which saves memory (docs/scaling.md).",
    ),
    "sync_batch_norm": Setting(
        True, "Whether BatchNorm's statistics cover all replicas, if there are several."
    ),
    "log_every": Setting(
        None,
        "Steps between two lines of the log.",
        type=int,
        none="a twentieth of the run, at most 100",
        at_least=0,
        unit="steps",
    ),
    "checkpoint_every": Setting(
        None,
        "Steps between two checkpoints.",
        type=int,
        none="a tenth of the run, at most 1,000",
        at_least=0,
        unit="steps",
    ),
    "evaluate_every": Setting(
        None,
        "Steps between two evaluations on the validation split.",
        type=int,
        none="never",
        at_least=0,
        unit="steps",
    ),
    "stop_after": Setting(
        0,
        "Number of evaluations without a better top-1 after which the training ends; 0: never. "
        "`final_weights` says which weights are kept.",
        at_least=0,
        unit="evaluations",
    ),
    "keep_checkpoints": Setting(
        2,
        "Number of newest checkpoints to keep. The checkpoint of the best evaluation is kept, too.",
        at_least=1,
    ),
    "keep_every": Setting(
        0,
        "Distance between checkpoints that are kept for good; 0: none are.",
        at_least=0,
        unit="steps",
    ),
    "final_weights": Setting(
        "last",
        "The last weights, as in the papers, or the best on the validation split.",
        choices=("last", "best"),
    ),
}
"""What a run computes in, and what it logs and keeps."""

FROZEN_BLOCKS = Setting(
    0,
    "With --init: number of first blocks that are not trained. The stem is not trained either.",
    at_least=0,
)

FINE_TUNING = {
    "frozen_blocks": FROZEN_BLOCKS,
    "frozen_batch_norm": Setting(
        False,
        "With --init: whether BatchNorm keeps its statistics, scale and shift, and normalizes "
        "with them.",
    ),
    "layer_decay": Setting(
        1.0,
        "With --init: factor of the learning rate from one block to the block below it; 1: off. "
        "The classifier trains at the whole learning rate.",
        above=0,
        at_most=1,
        source="Clark et al. 2020, ELECTRA, has 0.8; off by default",
    ),
    "head_steps": Setting(
        0,
        "With --init: number of first steps in which only the classifier learns.",
        at_least=0,
        unit="steps",
    ),
}
"Settings of a training that starts from given weights."


def needing_weights(values: Mapping[str, Any]) -> list[str]:
    """Returns the settings of `FINE_TUNING` in a train section that are not off."""
    return [
        name
        for name, declared in FINE_TUNING.items()
        if values.get(name, declared.default) != declared.default
    ]


OF_A_RECIPE = {"preprocessing": OWN_PREPROCESSING, **FINE_TUNING}
"""Further keys that the section of a method may have."""

UDA = Section(
    "Unsupervised Data Augmentation: the loss on unlabeled images.",
    {
        "weight": Setting(8.0, "Weight of the loss; 0: off.", at_least=0),
        "temperature": Setting(
            0.7,
            "Temperature of the target; below 1 sharpens.",
            above=0,
            when=(When("weight"),),
        ),
        "threshold": Setting(
            0.6,
            "Least confidence of an image that contributes to the loss.",
            at_least=0,
            at_most=1,
            when=(When("weight"),),
        ),
        "ramp_steps": Setting(
            5000,
            "Length of the weight's linear increase from 0.",
            at_least=0,
            unit="steps",
            when=(When("weight"),),
        ),
    },
)

OF_UNLABELED = {
    **DURATION,
    "unlabeled_ratio": DURATION["unlabeled_ratio"].but(default=7, at_least=1, source=""),
}
"""`DURATION` of a method that learns from unlabeled images only."""

UDA_TRAIN = Section(
    "A training by UDA, of one network.",
    {
        "method": METHOD.but(default="uda"),
        "model": MODEL,
        "optimizer": OPTIMIZER.but(name="sgd", nesterov=True),
        "schedule": SCHEDULE_IN_STEPS,
        **OF_UNLABELED,
        "supervised_weight": Setting(1.0, "Weight of the labeled loss.", at_least=0),
        "uda": UDA,
        **LOSS,
        "accumulation": ACCUMULATION,
        **RUN,
    },
    more=OF_A_RECIPE,
)
