"""Noisy Student on ImageNet with a large unlabeled corpus (the paper: JFT, 300 million images).

    ./run_noisy_student.sh --config=configs/noisy_student/imagenet.py:b7 --labeled=IMAGENET \
        --unlabeled=tar:POOL --workdir=W

`:b0` ... `:b7` one student of the teacher's size (Xie et al. 2020, Figure 2; top-1 from Table 9 of
    the first version, teacher -> student): B0 77.3 -> 78.1, B1 79.2 -> 80.3, B2 80.0 -> 81.1, B3
    81.7 -> 82.4, B4 83.2 -> 84.0, B5 84.0 -> 84.9, B6 84.5 -> 85.3, B7 85.0 -> 85.9
`:l2` B7 -> L2 -> L2 -> L2 (Section 3.1, "Iterative training"): 85.0 -> 88.4, on a Cloud TPU v3 Pod
    of 2,048 cores, 6 days for a training at ratio 14
`:v1` the chain of the first version, B7 -> B7 -> L0 -> L1 -> L2 -> L2: 85.0 -> 87.4; L0, L1 and L2
    are fine-tuned at a larger resolution before they label (its Section 3.1)
`:l2_b0` ... `:l2_b7` a student of B0 ... B7 to deploy, of the last teacher of `:l2` (the first
    version, A.4, Table 9; its teacher had 87.4): B0 79.0, B1 81.4, B2 82.2, B3 83.4, B4 84.9,
    B5 85.6, B6 86.0, B7 86.8

`:resnet50` ResNet-50, 78.9 (Pham et al. 2021, Table 3); no text that could be consulted has its
    settings, so it has those of the EfficientNets of its size
`:b0_release`, `:b1_release` as the release trains them, without RandAugment; the paper has it for
    all sizes (Section 3.2)

The hardware is known for `:l2` only. Where the paper is silent on a size, the value is the released
scripts', and a comment says so. The networks without Noisy Student are in
configs/supervised/imagenet.py.
"""

from ml_collections import ConfigDict

from configs.noisy_student import base

# RandAugment's magnitude by size. The paper gives that of B7 and L2, 27; B2 to B6 have the released
# scripts'. The scripts have none for B0 and B1, where the paper has RandAugment, too: this
# project's choice is B2's, the mildest. ResNet-50 has that of RandAugment's paper.
MAGNITUDES = {
    "b0": 6.0,
    "b1": 6.0,
    "b2": 6.0,
    "b3": 12.0,
    "b4": 15.0,
    "b5": 18.0,
    "b6": 24.0,
    "resnet50": 9.0,
}
# Pixels of a training image; L2 is fine-tuned and tested at 800 (the first version, Table 7).
SIZES = {
    "b0": 224,
    "b1": 240,
    "b2": 260,
    "b3": 300,
    "b4": 380,
    "b5": 456,
    "b6": 528,
    "b7": 600,
    "l0": 380,
    "l1": 380,
    "l2": 475,
}
SIZES["resnet50"] = 224
# FixRes: pixels of the fine-tuning (the first version, Table 7), and blocks that are fixed. The
# paper fixes the shallow layers; how many is not published. Here: the stem and the blocks of the
# first two of seven stages.
FIXRES = {"l0": (600, 12), "l1": (600, 12), "l2": (800, 17)}


def section(name: str, unlabeled_ratio: int) -> ConfigDict:
    """Returns the section of a training of network `name` (the paper, Section 3.1)."""
    method = "noisy_student" if unlabeled_ratio else "supervised"
    train = base.train_section(method=method, unlabeled_ratio=unlabeled_ratio, batch_size=2048)
    train.model.name = name
    noise = {"randaugment_layers": 2, "randaugment_magnitude": MAGNITUDES.get(name, 27.0)}
    train.preprocessing = ConfigDict({"image_size": SIZES[name], **noise})
    # trained twice as long, with a learning rate that falls half as fast
    small = name in ("b0", "b1", "b2", "b3", "b4")
    train.epochs = 700.0 if small else 350.0
    train.schedule.decay_epochs = 4.8 if small else 2.4
    train.precision = "mixed_bfloat16"
    return train


def fixres(tuning: ConfigDict, name: str) -> None:
    """Makes the section `tuning` the fine-tuning of network `name` at its larger resolution."""
    pixels, frozen = FIXRES[name]
    tuning.update({"batch_size": 2048, "precision": "mixed_bfloat16", "frozen_blocks": frozen})
    tuning.preprocessing.image_size = pixels


def get_config(name: str = "b0") -> ConfigDict:
    """Returns the recipe.

    `name`: b0 ... b7, resnet50, l2, v1, l2_b0 ... l2_b7, b0_release or b1_release.
    """
    chains = {
        "l2": (("b7", 0), ("l2", 14), ("l2", 14), ("l2", 28)),
        "v1": (("b7", 0), ("b7", 3), ("l0", 3), ("l1", 3), ("l2", 3), ("l2", 3)),
    }
    # ratios: the first version, Section 3.1
    small = {f"l2_b{i}": (*chains["l2"], (f"b{i}", 3 if i == 7 else 1)) for i in range(8)}
    release = ("b0_release", "b1_release")
    names = [*(f"b{i}" for i in range(8)), "resnet50", *chains, *small, *release]
    if name not in names:
        raise ValueError(f"imagenet.py has no variant {name}; the variants are {', '.join(names)}")
    network = name.removesuffix("_release") if name in release else name
    chain = {**chains, **small}.get(name, ((network, 0), (network, 1 if network == "b0" else 3)))
    config = base.get_config()
    config.data.update(
        {
            "source": "imagenet",
            "label_offset": 1,
        }
    )
    config.expected.update({"labeled": 1_281_167, "unlabeled": 300_000_000, "classes": 1000})
    config.balance.images_per_class = 130_000
    # An EfficientNet-B0 selects the unlabeled images, once; every later teacher labels the
    # selected images (Section 3.1).
    config.selection = "once"
    # Pseudo-labels by the folded graph, in the precision that the teacher was trained in
    # (docs/scaling.md, "What small records lose").
    config.pseudo_label.update({"optimize": True, "precision": "mixed_bfloat16"})
    config.teacher = section(*chain[0])
    if chain[0] != ("b0", 0):
        config.selector = section("b0", 0)
        # A variant's change of the labeling, such as Table 6's noise, does not apply to the
        # selection.
        config.pseudo_label_0 = config.pseudo_label.copy_and_resolve_references()
    config.student = section(*chain[-1])
    for iteration, link in enumerate(chain[1:-1], 1):
        config[f"student_{iteration}"] = section(*link)
    if name in small:
        # the standard augmentation instead of RandAugment (A.4)
        config.student.preprocessing.randaugment_layers = 0
    config.iterations = len(chain) - 1
    if name in release:
        for section_name in ("teacher", "student"):
            config[section_name].preprocessing.randaugment_layers = 0
    if name in chains:  # FixRes, for the chains that end with L2 as the one to serve
        config.finetune_last = True
        fixres(config.finetune, chain[-1][0])
    if name == "v1":  # and for every other student that has a larger resolution
        for iteration, (network, _) in enumerate(chain[1:-1], 1):
            if network in FIXRES:
                config[f"finetune_{iteration}"] = config.finetune.copy_and_resolve_references()
                fixres(config[f"finetune_{iteration}"], network)
    return config
