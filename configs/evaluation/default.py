"""How models are evaluated: the recipe of `run_evaluate.sh` where none is named.

    ./run_evaluate.sh --workdir=W --data=runs/quickstart/data --model=runs/quickstart/teacher,runs/quickstart/student_2 \
        --suite=clean,c,p,adversarial

Recipes of the methods serve as well: of `config.evaluate` they have `batch_size` and `split`, and the other values are these.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The recipe."""
    config = ConfigDict()
    config.evaluate = ConfigDict(
        {
            "batch_size": 128,
            "split": "test",  # run_evaluate.sh's flag --split goes before it
            "seed": 0,  # of corruptions, sequences and random starts
            "baseline": placeholder(str),  # name of the model that mCE and mFR divide by; None: the first (AlexNet for ImageNet-C and -P)
            "saved_model_style": "imagenet",  # preprocessing of a SavedModel that does not say: imagenet (central crop) or small
            # ImageNet-C and -P, as the paper does it (Section 3.3 and its footnote 3): the whole image is resized to the network's
            # input, without a crop, and a network fine-tuned at a larger resolution is left out.
            "whole_image": True,
            "finetuned_on_c_and_p": False,
            "difficulty": 1,  # of the sequences of -P: 1 to 3
            # Attacks, on the scale 0-255. The paper says: FGSM with epsilon up to 16, PGD with 10 iterations at epsilon 16.
            "norm": "inf",  # or 2
            "fgsm_epsilons": tuple(float(epsilon) for epsilon in range(17)),
            "pgd_epsilon": 16.0,
            "pgd_iterations": 10,
            "pgd_step": placeholder(float),  # None: 2.5 epsilon / iterations (Madry et al. 2018, Section C); the paper does not say
            "pgd_random_start": True,  # as Madry et al.; the paper does not say
        }
    )
    return config
