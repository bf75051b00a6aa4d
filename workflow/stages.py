"""The stages of the loop and their order: what a recipe comes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cli.errors import InputError
from workflow import train

ENDING = ("finetune", "evaluate", "export")
"""The stages after the last student."""


class Stage(NamedTuple):
    """A script and the directory that it finishes.

    Attributes:
      name: for people.
      script: in the checkout.
      directory: its work directory.
      arguments: its other flags.
      beam: whether it takes options of Beam.
      counted: the name under which its seconds are counted; "": its own.
    """

    name: str
    script: str
    directory: Path
    arguments: dict[str, Any]
    beam: bool = False
    counted: str = ""


def trainings(config: ConfigDict, workdir: Path, folders: dict[str, str], strategy: str) -> list[Stage]:
    """Returns the stages that train the teacher and the students, in order.

    `folders` holds the source directories by flag name.
    """
    data = workdir / "data"
    init = {"init": config.init} if config.init else {}
    stages = [
        Stage("prepare", "run_prepare_data.sh", data, folders),
        Stage("teacher", "run_teacher.sh", workdir / "teacher", {**init, "data": data, "strategy": strategy}),
    ]
    models = model_directories(workdir, config.iterations)
    for i in range(1, config.iterations + 1):  # step 4: the student becomes the teacher
        predictions, pseudo_labeled = (workdir / f"{name}_{i}" for name in ("predictions", "pseudo_labeled"))
        section, labels = (f"{name}_{i}" if f"{name}_{i}" in config else name for name in ("student", "pseudo_label"))
        training: dict[str, Any] = {"section": section, "iteration": i, "data": data}
        training |= {"pretrained": init, "teacher": {"init": models[i - 1]}, "scratch": {}}[train.student_init(config)]
        training["strategy"] = strategy
        if config[section].online:
            stages.append(Stage(f"student_{i}", "run_student.sh", models[i], {**training, "teacher": models[i - 1]}))
            continue
        training["pseudo_labeled"] = pseudo_labeled
        stages += [
            Stage(
                f"pseudo_label_{i}",
                "run_pseudo_label.sh",
                predictions,
                {"section": labels, "data": data, "teacher": models[i - 1]},
                beam=True,
            ),
            Stage(f"balance_{i}", "run_balance.sh", pseudo_labeled, {"data": data, "predictions": predictions}, beam=True),
        ]
        if config[section].labeled:
            stages.append(Stage(f"student_{i}", "run_student.sh", models[i], training))
        else:  # pre-training and fine-tuning, which the paper's joint training is compared with
            pretrained = workdir / f"pretrained_{i}"
            tuning = {"section": "finetune_student", "iteration": i, "init": pretrained, "data": data, "strategy": strategy}
            stages += [
                Stage(f"pretrain_{i}", "run_student.sh", pretrained, training),
                Stage(f"student_{i}", "run_finetune.sh", models[i], tuning),
            ]
    return stages


def ending(config: ConfigDict, workdir: Path, strategy: str, iterations: int, chosen: int) -> list[Stage]:
    """Returns the stages after `iterations` students.

    Model `chosen` (0 is the teacher) is fine-tuned, if the recipe says so, and served.
    """
    data, evaluation = workdir / "data", workdir / "evaluation"
    stages, models = [], model_directories(workdir, iterations)
    served = models[chosen]
    if config.finetune_last:
        models.append(workdir / "finetuned")
        stages.append(
            Stage("finetune", "run_finetune.sh", models[-1], {"section": "finetune", "init": served, "data": data, "strategy": strategy})
        )
        served = models[-1]
    names = ",".join(str(model) for model in models)
    arguments = {"data": data, "model": names, "split": config.evaluate.split}
    if config.init:
        arguments["init"] = config.init  # for the linear probe
    return [
        *stages,
        Stage("evaluate", "run_evaluate.sh", evaluation, arguments),
        Stage("export", "run_export.sh", workdir / "export", {"model": served, "evaluation": evaluation}),
    ]


def validation(config: ConfigDict, workdir: Path, number: int, model: Path) -> Stage:
    """Returns the stage that evaluates model `number` (0 is the teacher) on the validation split."""
    directory = workdir / f"validation_{number}"
    return Stage(directory.name, "run_evaluate.sh", directory, validated(config, workdir, model))


def validated(config: ConfigDict, workdir: Path, *models: Path) -> dict[str, Any]:
    """Returns the arguments of an evaluation of models on the validation split.

    A recipe's `evaluate.baseline` may be none of them: the first one then stands in for it.
    """
    named = models[0] if len(models) == 1 else ",".join(map(str, models))
    arguments: dict[str, Any] = {"data": workdir / "data", "model": named, "split": "validation"}
    if config.evaluate.get("baseline") not in (None, *(model.name for model in models)):
        arguments["config.evaluate.baseline"] = models[0].name
    return arguments


def check_baseline(config: ConfigDict, stages: Sequence[Stage]) -> None:
    """Raises InputError where the last evaluation has no model `evaluate.baseline`: now, not after the trainings."""
    baseline = config.evaluate.get("baseline")
    evaluation = next(stage for stage in stages if stage.name == "evaluate")
    names = [Path(model).name for model in str(evaluation.arguments["model"]).split(",")]
    if baseline and baseline not in names:
        raise InputError(f"config.evaluate.baseline: no model {baseline!r}; the run evaluates {', '.join(names)}")


def plan(config: ConfigDict, workdir: Path, folders: dict[str, str], strategy: str) -> list[Stage]:
    """Returns the stages of a recipe that goes through all its iterations, in order."""
    stages = trainings(config, workdir, folders, strategy)
    return stages + ending(config, workdir, strategy, config.iterations, config.iterations)


def model_directories(workdir: Path, iterations: int) -> list[Path]:
    """Returns the work directories of the teacher and of each student."""
    return [workdir / "teacher", *(workdir / f"student_{i}" for i in range(1, iterations + 1))]
