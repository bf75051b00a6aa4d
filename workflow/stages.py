"""The stages of the loop and their order, as a recipe defines them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cli.errors import InputError
from workflow import train

ENDING = ("finetune", "evaluate", "export")
"""The stages after the last student."""
SELECTOR = "selector"
"""Section of the recipe, and directory, of the network that selects the unlabeled images once."""
ONCE = "once"
"""The `selection` of a recipe that selects the unlabeled images once."""


class Stage(NamedTuple):
    """A script and the directory that it finishes.

    Attributes:
      name: name for people.
      script: name of the script in the checkout.
      directory: its work directory.
      arguments: its other flags.
      beam: whether it takes options of Beam.
      counted: the name under which its seconds are counted; "": its own name.
      unread: section of the recipe that it does not read, so that it gets no settings of it; "":
        none.
    """

    name: str
    script: str
    directory: Path
    arguments: dict[str, Any]
    beam: bool = False
    counted: str = ""
    unread: str = ""


def trainings(
    config: ConfigDict, workdir: Path, folders: dict[str, str], strategy: str
) -> list[Stage]:
    """Returns the stages that train the teacher and the students, in order.

    `folders` holds the source directories by flag name.
    """
    data = workdir / "data"
    init = {"init": config.init} if config.init else {}
    stages = [
        Stage("prepare", "run_prepare_data.sh", data, folders),
        Stage(
            "teacher",
            "run_teacher.sh",
            workdir / "teacher",
            {**init, "data": data, "strategy": strategy},
        ),
    ]
    models = model_directories(workdir, config.iterations)
    training: dict[str, Any]
    if SELECTOR in config:
        selector = workdir / SELECTOR
        training = {"section": SELECTOR, **init, "data": data, "strategy": strategy}
        stages.insert(1, Stage(SELECTOR, "run_teacher.sh", selector, training))
        stages[2:2] = _labelings(config, workdir, 0, selector)
    for i in range(1, config.iterations + 1):  # step 4: the student becomes the teacher
        section = f"student_{i}" if f"student_{i}" in config else "student"
        training = {"section": section, "iteration": i, "data": data}
        training |= {"pretrained": init, "teacher": {"init": models[i - 1]}, "scratch": {}}[
            train.student_init(config)
        ]
        training["strategy"] = strategy
        if config[section].online:
            training |= {"teacher": models[i - 1], **selection_of(config, workdir, i)}
            stages.append(Stage(f"student_{i}", "run_student.sh", models[i], training))
            continue
        stages += _labelings(config, workdir, i, models[i - 1])
        training["pseudo_labeled"] = stages[-1].directory
        tuning = tuning_of(config, section, i)
        if not tuning:
            stages.append(Stage(f"student_{i}", "run_student.sh", models[i], training))
            continue
        pretrained = workdir / f"pretrained_{i}"
        flags = {
            "section": tuning,
            "iteration": i,
            "init": pretrained,
            "data": data,
            "strategy": strategy,
        }
        stages += [
            Stage(f"pretrain_{i}", "run_student.sh", pretrained, training),
            Stage(f"student_{i}", "run_finetune.sh", models[i], flags),
        ]
    return stages


def tuning_of(config: ConfigDict, section: str, iteration: int) -> str:
    """Returns the section that fine-tunes a student before it teaches the next one; "" for none.

    It is `finetune_student` of a student that saw no labeled images (Yalniz et al. 2019), else
    `finetune_<iteration>` where the recipe has it (Xie et al. 2020, first version, Section 3.1).
    """
    if not config[section].labeled:
        return "finetune_student"
    return f"finetune_{iteration}" if f"finetune_{iteration}" in config else ""


def selection_of(config: ConfigDict, workdir: Path, iteration: int) -> dict[str, Path]:
    """Returns the flag that names the balanced set which an iteration's teacher labels again.

    Empty where the teacher labels all unlabeled images and selects by itself. Iteration 0 is the
    selector's.
    """
    first = 0 if SELECTOR in config else 1
    if config.get("selection") != ONCE or iteration <= first:
        return {}
    return {"selection": workdir / f"pseudo_labeled_{first}"}


def _labelings(config: ConfigDict, workdir: Path, number: int, teacher: Path) -> list[Stage]:
    """Returns the two stages that make the pseudo-labels of iteration `number` by `teacher`."""
    section = f"pseudo_label_{number}" if f"pseudo_label_{number}" in config else "pseudo_label"
    predictions, pseudo_labeled = (
        workdir / f"{name}_{number}" for name in ("predictions", "pseudo_labeled")
    )
    given = {"data": workdir / "data", **selection_of(config, workdir, number)}
    labeling = {"section": section, **given, "teacher": teacher}
    balancing = {**given, "predictions": predictions}
    unread = "balance" if "selection" in given else ""
    return [
        Stage(f"pseudo_label_{number}", "run_pseudo_label.sh", predictions, labeling, beam=True),
        Stage(
            f"balance_{number}",
            "run_balance.sh",
            pseudo_labeled,
            balancing,
            beam=True,
            unread=unread,
        ),
    ]


def ending(
    config: ConfigDict, workdir: Path, strategy: str, iterations: int, chosen: int
) -> list[Stage]:
    """Returns the stages after `iterations` students.

    Model `chosen` (0 is the teacher) is fine-tuned, if the recipe says so, and served.
    """
    data, evaluation = workdir / "data", workdir / "evaluation"
    stages, models = [], model_directories(workdir, iterations)
    served = models[chosen]
    if config.finetune_last:
        models.append(workdir / "finetuned")
        stages.append(
            Stage(
                "finetune",
                "run_finetune.sh",
                models[-1],
                {"section": "finetune", "init": served, "data": data, "strategy": strategy},
            )
        )
        served = models[-1]
    names = ",".join(str(model) for model in models)
    arguments = {"data": data, "model": names, "split": config.evaluate.split}
    if config.init:
        arguments["init"] = config.init  # for the linear probe
    return [
        *stages,
        Stage("evaluate", "run_evaluate.sh", evaluation, arguments),
        Stage(
            "export",
            "run_export.sh",
            workdir / "export",
            {"model": served, "evaluation": evaluation},
        ),
    ]


def validation(config: ConfigDict, workdir: Path, number: int, model: Path) -> Stage:
    """Returns the stage that evaluates model `number` (0: teacher) on the validation split."""
    directory = workdir / f"validation_{number}"
    return Stage(directory.name, "run_evaluate.sh", directory, validated(config, workdir, model))


def validated(config: ConfigDict, workdir: Path, *models: Path) -> dict[str, Any]:
    """Returns the arguments of an evaluation of models on the validation split.

    A recipe's `evaluate.baseline` may be none of the models. Then the first model stands in for it.
    """
    named = models[0] if len(models) == 1 else ",".join(map(str, models))
    arguments: dict[str, Any] = {"data": workdir / "data", "model": named, "split": "validation"}
    if config.evaluate.get("baseline") not in (None, *(model.name for model in models)):
        arguments["config.evaluate.baseline"] = models[0].name
    return arguments


def check_baseline(config: ConfigDict, stages: Sequence[Stage]) -> None:
    """Raises InputError where the last evaluation has no model `evaluate.baseline`.

    The check is made before the trainings, not after them.
    """
    baseline = config.evaluate.get("baseline")
    evaluation = next(stage for stage in stages if stage.name == "evaluate")
    names = [Path(model).name for model in str(evaluation.arguments["model"]).split(",")]
    if baseline and baseline not in names:
        raise InputError(
            f"config.evaluate.baseline: no model {baseline!r}; the run evaluates {', '.join(names)}"
        )


def plan(config: ConfigDict, workdir: Path, folders: dict[str, str], strategy: str) -> list[Stage]:
    """Returns the stages of a recipe that goes through all its iterations, in order."""
    stages = trainings(config, workdir, folders, strategy)
    return stages + ending(config, workdir, strategy, config.iterations, config.iterations)


def sections_read(stages: Iterable[Stage]) -> set[str]:
    """Returns the recipe's sections that the stages read: trainings, labelings and `balance`."""
    return {stage.arguments.get("section") or _SECTIONS.get(stage.script, "") for stage in stages}


_SECTIONS = {
    "run_teacher.sh": "teacher",
    "run_train.sh": "train",
    "run_finetune.sh": "finetune",
    "run_balance.sh": "balance",
}
"""Script -> the section that it reads where no flag names one."""


def model_directories(workdir: Path, iterations: int) -> list[Path]:
    """Returns the work directories of the teacher and of each student."""
    return [workdir / "teacher", *(workdir / f"student_{i}" for i in range(1, iterations + 1))]
