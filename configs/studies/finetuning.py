"""Chooses how few photographs are fine-tuned, on validation images.

./run_experiment.sh study --config=configs/studies/finetuning.py --labeled=PHOTOS \
    --workdir=runs/studies/finetuning

`PHOTOS/CLASS/*` are labeled photographs of one set. 50 images of each class are put aside as the
test, and no run looks at them. A seed draws 300 validation images, and 20 labeled ones of each
class. `finetuning.py:smoke` shows all of it at work, in tiny trainings; their numbers mean nothing.

Every run is supervised fine-tuning by `configs/supervised/image_folder.py:lite0`, the teacher of
all methods, with one change.

This file was written before any of its runs, and fixes what will be reported:

- Conditions: the recipe; every BatchNorm frozen; learning rates that fall by 0.8 from block to
  block; the classifier alone for 100 steps; no weight decay and ten times as much; 128 pixels; no
  frozen blocks, alone and with falling learning rates.
- Seeds: 100 to 102. No reported result uses their validation images.
- What follows: a change that is better than the recipe on all seeds, by at least one point in the
  mean, becomes the recipe's. Otherwise the recipe stays. With three seeds, a test decides little,
  so none is reported as a finding about the method.
"""

from ml_collections import ConfigDict

from configs.studies import base

CHANGES = {
    "frozen_batch_norm": ("--config.train.frozen_batch_norm=True",),
    "layer_decay": ("--config.train.layer_decay=0.8",),
    "head_first": ("--config.train.head_steps=100",),
    "no_weight_decay": ("--config.train.weight_decay=0.0",),
    "weight_decay": ("--config.train.weight_decay=0.0001",),
    "128_pixels": ("--config.preprocessing.image_size=128",),
    "all_blocks": ("--config.train.frozen_blocks=0",),
    "all_blocks_layer_decay": ("--config.train.frozen_blocks=0", "--config.train.layer_decay=0.8"),
}
"""Run -> its flags besides the recipe's."""


def get_config(name: str = "20") -> ConfigDict:
    """Returns the study; `name`: labeled images of each class, or smoke."""
    smoke = name == "smoke"
    if not smoke and not name.isdecimal():
        raise ValueError(
            f"finetuning.py has no variant {name}; give a number of images a class, or smoke"
        )
    flags = (
        f"--config.data.labeled_per_class={2 if smoke else int(name)}",
        f"--config.data.test_per_class={2 if smoke else 50}",
        f"--config.data.validation_size={6 if smoke else 300}",
        "--config.data.on_error=skip",
        "--config.evaluate.split=validation",
    )
    if smoke:
        flags = (*flags, *base.short("train"))
    runs = {"recipe": (), **CHANGES}
    config = base.study(
        "Fine-tuning" if not smoke else "Fine-tuning, smoke test",
        f"Photographs, {2 if smoke else int(name)} labels a class, on validation images.",
        recipe="configs/supervised/image_folder.py:lite0",
        flags=flags,
        runs=tuple((run, run_flags, "train") for run, run_flags in runs.items()),
        readings=tuple((run, run, "exported.top1") for run in runs),
        claims=tuple(
            (run, "recipe", f"{run.replace('_', ' ')} is better than the recipe") for run in CHANGES
        ),
        shared=("data",),
        of_photographs=True,
        correction="holm",
        first_seed=100,
        seeds=2 if smoke else 3,
    )
    config.methods.update({"train": (("", "run_train.sh", ()),)})
    return config
