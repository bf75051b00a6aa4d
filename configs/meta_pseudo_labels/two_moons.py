"""Two moons, 6 labelled points of 2,000 (Pham et al. 2021, Section 3.1): who finds the two clusters, and how often?

    ./run_two_moons.sh --config=configs/meta_pseudo_labels/two_moons.py --workdir=runs/two_moons            # what works
    ./run_two_moons.sh --config=configs/meta_pseudo_labels/two_moons.py:paper --workdir=runs/two_moons_paper  # the paper's values
    ./run_two_moons.sh --config=configs/meta_pseudo_labels/two_moons.py:sweep --workdir=runs/two_moons_sweep  # one change at a time

The paper's values are a network 2-8-8-2 with sigmoids, weights in ±0.1, SGD at 0.1; it gives neither steps nor batch nor noise. Two
things differ in what works: the rate is 1, in place of ten times the steps, and the teacher has its UDA loss, which the paper's text leaves
out of this experiment.
"""

from typing import Any

from ml_collections import ConfigDict


def method(**overrides: Any) -> ConfigDict:
    """One method; the zeros are the losses that the teacher does not have."""
    config = ConfigDict()
    config.steps = 40_000
    config.batch_size = 32  # unlabelled points a step; the 6 labelled ones are all in every step
    config.learning_rate = 1.0  # of teacher and student
    config.schedule = "constant"  # or cosine, from the rate to 0
    config.init_scale = 0.1  # weights and biases are uniform in ± this
    config.supervised = 1.0  # factor of the teacher's loss on the labelled points
    config.feedback = 0.0  # factor of the feedback's loss, whose gradient is the true one where the estimator is soft
    config.estimator = "soft"  # of the feedback (feedback.label_feedback), or cosine (feedback.cosine, Appendix C.3)
    config.pseudo_labels = "sampled"  # or argmax, soft
    config.consistency = 0.0  # factor of UDA: the label of a point must be that of the same point moved a little
    config.consistency_noise = 0.2  # standard deviation of that move; the moons are 2 wide
    config.temperature = 0.5  # of UDA's target
    config.all_labels = False  # every label is known: what the network and the budget can reach
    config.teacher = ""  # an earlier method, whose result is the teacher from the start
    config.result = "teacher"  # the network that counts
    config.update(overrides)
    return config


def methods(**overrides: Any) -> dict[str, ConfigDict]:
    """The paper's three, and the ceiling."""
    return {
        "supervised": method(**overrides),
        "pseudo_labels": method(teacher="supervised", supervised=0.0, pseudo_labels="argmax", result="student", **overrides),
        "meta_pseudo_labels": method(feedback=0.1, consistency=2.0, result="student", **overrides),
        "all_labels": method(all_labels=True, **overrides),
    }


def sweep() -> dict[str, ConfigDict]:
    """What makes it work: one change at a time; `low_rate` is the paper's 0.1, for ten times the steps where it is `long`."""
    mpl = {"feedback": 1.0, "result": "student"}
    low, long = {"learning_rate": 0.1}, {"learning_rate": 0.1, "steps": 400_000}
    working = {"feedback": 0.1, "consistency": 2.0, "result": "student"}
    return {
        "mpl": method(**mpl),
        "mpl_feedback_x10": method(**{**mpl, "feedback": 10.0}),
        "mpl_feedback_alone": method(**mpl, supervised=0.0),
        "mpl_soft_labels": method(**mpl, pseudo_labels="soft"),
        "uda": method(**{**working, "feedback": 0.0}),
        "mpl_uda": method(**working),
        "mpl_uda_half": method(**{**working, "consistency": 1.0}),
        "mpl_uda_feedback_x10": method(**{**working, "feedback": 1.0}),
        "mpl_uda_batch_8": method(**working, batch_size=8),
        "mpl_uda_batch_256": method(**working, batch_size=256),
        "mpl_cosine": method(**mpl, estimator="cosine"),
        "mpl_uda_cosine": method(**working, estimator="cosine"),
        "mpl_schedule": method(**mpl, schedule="cosine"),
        "mpl_uda_schedule": method(**working, schedule="cosine"),
        "mpl_uda_low_rate": method(**working, **low),
        "mpl_uda_low_rate_long": method(**working, **long),
        "mpl_low_rate_long": method(**mpl, **long),
        "mpl_feedback_alone_low_rate": method(**mpl, supervised=0.0, **low),
        "mpl_feedback_alone_low_rate_long": method(**mpl, supervised=0.0, **long),
        "all_labels_low_rate_long": method(all_labels=True, **long),
    }


def get_config(name: str = "working") -> ConfigDict:
    """`name`: working, paper or sweep."""
    if name not in ("working", "paper", "sweep"):
        raise ValueError(f"two_moons.py:{name}: the names are working, paper, sweep")
    config = ConfigDict()
    config.seed = 0
    config.seeds = 16 if name == "sweep" else 50
    config.noise = 0.1  # of the points
    config.success = 0.99  # part of all points that must be right
    named = sweep() if name == "sweep" else methods(learning_rate=0.1) if name == "paper" else methods()
    if name == "paper":
        named["meta_pseudo_labels"].update({"consistency": 0.0, "feedback": 1.0})
    config.run = tuple(named)  # in this order
    config.methods = ConfigDict(named)
    return config
