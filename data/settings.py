"""Settings of a recipe's sections `data`, `expected` and `preprocessing`."""

from __future__ import annotations

from cli.settings import Section, Setting, When

FORMATS = {
    "image_folder": "image_folder.open_folder",
    "manifest": "image_list.open_list",
    "tfrecord": "tfrecords.open_records",
    "tar": "archives.open_archives",
    "tfds": "tfds_source.open_tfds",
    "imagenet": "imagenet.open_imagenet",
    "cifar10": "small_images.open_cifar10",
    "svhn": "small_images.open_svhn",
}
"""Format -> the function of this package that opens it; imported when it is needed."""

STYLES = ("small", "imagenet")
AUTOAUGMENT = "autoaugment_v0"
RANDAUGMENT_TABLES = ("noisy_student", "meta_pseudo_labels")
RANDAUGMENT_MODES = ("reference", "monotone")

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""Per RGB channel, in units of 0-255. Source: the EfficientNet authors' code."""

CROP_PADDING = 32  # of every released checkpoint: it was measured on S / (S + 32) of the short side

SEED = Setting(0, "Seed of all random draws but the test split.", at_least=0)

OF_DIGITS = (When("source", ("digits",)),)

DATA = Section(
    "Which images there are, and how they are split (docs/data.md).",
    {
        "source": Setting(
            "image_folder",
            "Format of locations that name none (docs/data.md). The flag --source.",
            choices=("digits", *FORMATS),
        ),
        "labeled": Setting(
            None, "Location of the labeled images. The flag --labeled.", type=str, none="not given"
        ),
        "unlabeled": Setting(
            None,
            "Location of the unlabeled images. The flag --unlabeled.",
            type=str,
            none="only labeled_as_unlabeled",
        ),
        "test": Setting(
            None,
            "Location of the test images. The flag --test.",
            type=str,
            none="hold out test_fraction of the labeled images",
        ),
        "labels": Setting(
            None,
            "List of labels that a person corrected or added. The flag --labels.",
            type=str,
            none="not given",
        ),
        "pseudo_labeled": Setting(
            None,
            "Location of shards that the Noisy Student release made. The flag --pseudo_labeled.",
            type=str,
            none="not given",
        ),
        "test_fraction": Setting(
            0.2,
            "Share of each labeled class that is held out for the test.",
            above=0,
            below=1,
            when=(When("test", (None,)), When("test_per_class", (None,))),
        ),
        "test_per_class": Setting(
            None,
            "Images of each labeled class held out for the test.",
            type=int,
            none="test_fraction says how many",
            at_least=1,
            unit="images a class",
            when=(When("test", (None,)),),
        ),
        "test_seed": Setting(0, "Seed of the images held out for the test.", at_least=0),
        "validation_size": Setting(
            0,
            "Labeled images set aside for choosing hyper-parameters, weights and the model served.",
            none="a fifth of the labeled images where that is at least 200, else 0",
            at_least=0,
            unit="images",
        ),
        "folds": Setting(
            0,
            "Parts of the labeled images for cross-fitting. The loop sets it, from crossfit.folds.",
            at_least=0,
        ),
        "fold": Setting(
            0,
            "Which of the folds is the validation split, from 1; 0: none. The loop sets it.",
            at_least=0,
            when=(When("folds"),),
        ),
        "labeled_per_class": Setting(
            None,
            "Size of a class-balanced subset of the labeled images.",
            type=int,
            none="all labeled images",
            at_least=1,
            unit="images a class",
        ),
        "long_tail": Setting(
            1.0,
            "Ratio of the labeled images of the largest class to those of the smallest class; 1: "
            "off. The classes between fall exponentially, in the order of their sizes. Labeled "
            "images that become unlabeled keep the same proportions (docs/data.md).",
            at_least=1,
            source="Cui et al. 2019, Section 5.1, has 10 to 200; off by default",
            when=(When("labeled_per_class"), When("source", tuple(FORMATS))),
        ),
        "labeled_as_unlabeled": Setting(
            "nothing",
            "Which labeled images are also unlabeled images: rest is what labeled_per_class "
            "leaves.",
            choices=("nothing", "rest", "all"),
        ),
        "near_duplicates": Setting(
            True,
            "Whether images that look alike count as copies. Identical ones always do.",
        ),
        "on_error": Setting(
            "fail",
            "What to do at an unreadable image or record: fail, or skip, which lists it.",
            choices=("fail", "skip"),
        ),
        "convert": Setting(
            False,
            "Whether to store WebP, TIFF, AVIF, HEIC, JPEG 2000 and odd BMP files as PNG.",
        ),
        "use_as_prepared": Setting(
            False,
            "Whether to use a finished data directory although its images have changed since.",
        ),
        "num_shards": Setting(
            None,
            "Number of shards of each split.",
            type=int,
            none="one for 2,000 images, at most 16,384",
            at_least=1,
            at_most=99_999,
        ),
        "label_offset": Setting(
            0, "Stored label minus class, in TFRecords read and written.", at_least=0
        ),
        "test_size": Setting(
            400,
            "Number of test images of the embedded digits.",
            at_least=1,
            unit="images",
            when=OF_DIGITS,
        ),
        "out_of_domain": Setting(
            0,
            "Number of crops of photographs among the unlabeled images of the embedded digits.",
            at_least=0,
            unit="images",
            when=OF_DIGITS,
        ),
    },
)

EXPECTED = Section(
    "Size of the full data, for a --dry_run before the data exist.",
    {
        "labeled": Setting(
            None, "Labeled images.", type=int, none="not known", at_least=1, unit="images"
        ),
        "unlabeled": Setting(
            None, "Unlabeled images.", type=int, none="not known", at_least=0, unit="images"
        ),
        "classes": Setting(None, "Classes.", type=int, none="not known", at_least=1),
    },
)

AUGMENTED = (When("randaugment_layers"),)
RANDAUGMENTED = (*AUGMENTED, When("randaugment_table", RANDAUGMENT_TABLES))


def _drawn(*operations: str) -> When:
    """Tells whether RandAugment draws one of the operations; () stands for all of a table."""
    return When(
        "randaugment_ops",
        test=lambda drawn: not drawn or bool(set(drawn) & set(operations)),
        words=f"() or names with {' or '.join(operations)}",
    )


PREPROCESSING = Section(
    "How images become pixels, with the noise of training.",
    {
        "image_size": Setting(
            None,
            "Side of the square that the network reads.",
            type=int,
            none="from the median size of the labeled images",
            at_least=1,
            unit="pixels",
        ),
        "style": Setting(
            "imagenet",
            "imagenet: a random crop in training, the central square in evaluation. small: the "
            "whole image, for images of the network's own size.",
            none="small up to 64 pixels",
            choices=STYLES,
        ),
        "mean": Setting(
            IMAGENET_MEAN,
            "Mean of each RGB channel, in units of 0-255.",
            length=(3, 3),
            source="the EfficientNet authors' code",
        ),
        "std": Setting(
            IMAGENET_STD,
            "Standard deviation of each RGB channel, in units of 0-255.",
            above=0,
            length=(3, 3),
            source="the EfficientNet authors' code",
        ),
        "flip": Setting(True, "Whether to mirror left and right with probability 0.5."),
        "pad": Setting(
            0,
            "Width of a mirrored border; a random crop is taken of the result; 0: off. For the "
            "small style.",
            none="an eighth of the side in the small style, else 0",
            at_least=0,
            unit="pixels",
        ),
        "randaugment_table": Setting(
            "noisy_student",
            f"Operations of RandAugment. {AUTOAUGMENT} is AutoAugment in its place.",
            choices=(*RANDAUGMENT_TABLES, AUTOAUGMENT),
            when=AUGMENTED,
        ),
        "randaugment_layers": Setting(
            2, "Number of operations applied to an image, one after the other; 0: off.", at_least=0
        ),
        "randaugment_magnitude": Setting(
            27.0,
            "Strength of the operations.",
            at_least=0,
            source="Xie et al. 2020, Section 3.1",
            when=RANDAUGMENTED,
        ),
        "randaugment_ops": Setting(
            (),
            "Operations to draw from; () is the whole table.",
            items=str,
            when=RANDAUGMENTED,
        ),
        "randaugment_mode": Setting(
            "reference",
            "reference: the release's arithmetic. monotone: a larger magnitude is always stronger.",
            choices=RANDAUGMENT_MODES,
            when=AUGMENTED,
        ),
        "translate_const": Setting(
            100.0,
            "Translation at magnitude 10.",
            none="a third of the side",
            at_least=0,
            unit="pixels",
            when=(*RANDAUGMENTED, _drawn("TranslateX", "TranslateY")),
        ),
        "cutout_const": Setting(
            40.0,
            "Half of the side of a cutout at magnitude 10.",
            none="40/224 of the side",
            at_least=0,
            unit="pixels",
            when=(*RANDAUGMENTED, _drawn("Cutout")),
        ),
        "extra_cutout": Setting(
            0,
            "Half of the side of a square cut out of every image; 0: off. For the small style.",
            at_least=0,
            unit="pixels",
        ),
        "crop_padding": Setting(
            CROP_PADDING,
            "P: evaluation sees S / (S + P) of the short side; S is image_size. small: all.",
            none="32/224 of the side",
            at_least=0,
            unit="pixels",
            when=(When("style", ("imagenet", None)),),
        ),
    },
)


OWN_PREPROCESSING = Section(
    "What differs from the recipe's `preprocessing` in this training.",
    {name: value.but(default=None, none="the recipe's") for name, value in PREPROCESSING.items()},
    inherits="preprocessing",
)
"""The settings of a train section's own `preprocessing`."""

READ = Section(
    "What run_prepare_data.sh reads of a recipe.",
    {"seed": SEED, "data": DATA},
    others="the settings of the other stages",
)
