"""Makes the config that all studies share; `experiments/study.py` runs it."""

from typing import Any

from ml_collections import ConfigDict


def study(title: str, description: str, **values: Any) -> ConfigDict:
    """Returns a study on the digits, of one iteration unless it says otherwise.

    Its accuracies are those on validation images of seeds that no reported result uses.

    Its keys, besides the ones given here:
      runs: (name, flags of the recipe's script), or (name, flags of each stage, method). The first
        run makes what is shared.
      methods: name -> the stages of a run: (directory in the run's own, script, its flags). In the
        flags `{run}` is the run's directory, and `{NAME}` the directory of run NAME of the same
        seed, which must come before it.
      readings: (name, run, dotted path into the summary.json of the run or of its last stage).
      claims: (reading, reading, finding): the finding says that the first is higher than the
        second.
      correction: correction of the claims' p-values for their number: none, or holm. With none the
        95 % interval decides.
      of_photographs: whether the images are the user's, given by the flags --labeled, --unlabeled
        and --test.
    """
    config = ConfigDict()
    config.title, config.description = title, description
    config.script, config.recipe = "run_noisy_student.sh", "configs/noisy_student/digits.py"
    config.flags = (
        "--config.data.validation_size=400",
        "--config.evaluate.split=validation",
    )  # of every run
    config.iterations = 1
    config.methods = ConfigDict()
    config.shared = ("data", "teacher")  # stage directories that do not depend on the run
    config.first_seed, config.seeds = 100, 5
    config.correction, config.of_photographs = "none", False
    config.update(values)
    return config


def one_student(**runs: tuple[str, ...]) -> dict[str, Any]:
    """Returns `runs` and `readings` of a study of single students.

    It compares the top-1 of the students with each other and with their teacher.
    """
    teacher = ("teacher", next(iter(runs)), "teacher.top1")
    return {
        "runs": tuple(runs.items()),
        "readings": (teacher, *((name, name, "students.-1.top1") for name in runs)),
    }


def short(*sections: str) -> tuple[str, ...]:
    """Returns flags that leave one pass over the labeled images of 32 pixels, for a smoke test."""
    values = {f"{section}.epochs": 1.0 for section in sections}
    values |= {f"{section}.min_steps": 0 for section in sections}
    values["preprocessing.image_size"] = 32
    return tuple(f"--config.{key}={value}" for key, value in values.items())
