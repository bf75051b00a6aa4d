"""Two moons with 6 labeled points of 2,000: who finds the two clusters, and how often?

    # what works
    ./run_experiment.sh two_moons --config=configs/experiments/two_moons.py --workdir=runs/two_moons
    # the paper's values
    ./run_experiment.sh two_moons --config=configs/experiments/two_moons.py:paper \
        --workdir=runs/two_moons_paper
    # one change at a time
    ./run_experiment.sh two_moons --config=configs/experiments/two_moons.py:sweep \
        --workdir=runs/two_moons_sweep

The experiment is that of Pham et al. 2021, Section 3.1. The paper's values are a network 2-8-8-2
with sigmoids, weights in ±0.1, and SGD at learning rate 0.1. The paper gives neither steps nor
batch size nor noise. The values that work differ in two things. The learning rate is 1, instead of
ten times the steps. The teacher has its UDA loss, which the paper's text leaves out of this
experiment.
"""

from typing import Any

from ml_collections import ConfigDict


def method(**overrides: Any) -> ConfigDict:
    """Returns one method; a loss factor of 0 leaves that loss out of the teacher's."""
    config = ConfigDict()
    config.steps = 40_000
    config.batch_size = 32  # unlabeled points a step; every step has all 6 labeled points
    config.learning_rate = 1.0  # of teacher and student
    config.schedule = "constant"  # or cosine, from the learning rate to 0
    config.init_scale = 0.1  # weights and biases are uniform in ± this
    config.supervised = 1.0  # factor of the teacher's loss on the labeled points
    # factor of the feedback's loss; 1 gives the true gradient, except with the estimator cosine
    config.feedback = 0.0
    # soft: h of each point and class. dot_product (eq. 12) and cosine (C.3): one number a step
    config.estimator = "soft"
    config.pseudo_labels = "sampled"  # or argmax, soft
    # factor of UDA's loss: a point that is moved a little must keep its label
    config.consistency = 0.0
    config.consistency_noise = 0.2  # standard deviation of that move; the moons are 2 wide
    config.temperature = 0.5  # of UDA's target
    config.all_labels = False  # every label is known: what the network and the budget can reach
    config.teacher = ""  # an earlier method; its result is the teacher from the start
    config.result = "teacher"  # the network that is evaluated: teacher or student
    config.update(overrides)
    return config


def baselines(suffix: str = "", **overrides: Any) -> dict[str, ConfigDict]:
    """Returns the paper's two baselines, and the ceiling."""
    teacher = f"supervised{suffix}"
    return {
        teacher: method(**overrides),
        f"pseudo_labels{suffix}": method(
            teacher=teacher, supervised=0.0, pseudo_labels="argmax", result="student", **overrides
        ),
        f"all_labels{suffix}": method(all_labels=True, **overrides),
    }


MPL = {"feedback": 1.0, "result": "student"}
UDA = {"consistency": 2.0, "result": "student"}  # a student of UDA's teacher, without feedback
WORKING = {**UDA, "feedback": 0.1}


def sweep() -> dict[str, ConfigDict]:
    """Returns the methods of the sweep: what makes it work, one change at a time.

    `low_rate` is the paper's learning rate, 0.1; with `long` it has ten times the steps.
    """
    low, long = {"learning_rate": 0.1}, {"learning_rate": 0.1, "steps": 400_000}
    return {
        "mpl": method(**MPL),
        "mpl_feedback_x10": method(**{**MPL, "feedback": 10.0}),
        "mpl_feedback_alone": method(**MPL, supervised=0.0),
        "mpl_soft_labels": method(**MPL, pseudo_labels="soft"),
        "uda": method(**UDA),
        "mpl_uda": method(**WORKING),
        "mpl_uda_half": method(**{**WORKING, "consistency": 1.0}),
        "mpl_uda_feedback_x10": method(**{**WORKING, "feedback": 1.0}),
        "mpl_uda_batch_8": method(**WORKING, batch_size=8),
        "mpl_uda_batch_256": method(**WORKING, batch_size=256),
        "mpl_dot_product": method(**MPL, estimator="dot_product"),
        "mpl_cosine": method(**MPL, estimator="cosine"),
        "mpl_uda_cosine": method(**WORKING, estimator="cosine"),
        "mpl_schedule": method(**MPL, schedule="cosine"),
        "mpl_uda_schedule": method(**WORKING, schedule="cosine"),
        "mpl_uda_low_rate": method(**WORKING, **low),
        "mpl_uda_low_rate_long": method(**WORKING, **long),
        "mpl_low_rate_long": method(**MPL, **long),
        "mpl_feedback_alone_low_rate": method(**MPL, supervised=0.0, **low),
        "mpl_feedback_alone_low_rate_long": method(**MPL, supervised=0.0, **long),
        "mpl_dot_product_low_rate_long": method(**MPL, estimator="dot_product", **long),
        "mpl_cosine_low_rate_long": method(**MPL, estimator="cosine", **long),
        "uda_low_rate_long": method(**UDA, **long),
        **baselines("_low_rate_long", **long),
    }


def get_config(name: str = "working") -> ConfigDict:
    """Returns the config; `name`: working, paper or sweep."""
    if name not in ("working", "paper", "sweep"):
        raise ValueError(
            f"two_moons.py has no variant {name}; the variants are working, paper, sweep"
        )
    config = ConfigDict()
    config.seed = 0
    config.seeds = 16 if name == "sweep" else 50
    config.noise = 0.1  # noise of the points
    config.success = 0.99  # share of all points that must be right
    if name == "sweep":
        named = sweep()
    elif name == "paper":
        named = {
            **baselines(learning_rate=0.1),
            "meta_pseudo_labels": method(**MPL, learning_rate=0.1),
        }
    else:
        named = {
            **baselines(),
            "uda": method(**UDA),
            "meta_pseudo_labels_with_uda": method(**WORKING),
        }
    config.run = tuple(named)  # in this order
    config.methods = ConfigDict(named)
    return config
