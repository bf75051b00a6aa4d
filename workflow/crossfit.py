"""Cross-fitting: answers to all labeled images by models that did not learn from them.

Where few images are labeled, a held-out part of them has too few images to decide. So the labeled
images are cut into folds, class by class. For each fold the loop's own stages run in
`<workdir>/folds/<k>/`, on the labeled images without the fold. The fold is the validation split
there. Images of the fold, and images that look like them, are not among the fold's unlabeled images
either.

`<workdir>/folds/answers.npz` joins the answers of all folds, sorted by key.
`workflow.choice.Answers` describes its arrays: `keys` str [N], `labels` int64 [N], `models` str [M]
(teacher, student_1, …), `probabilities` float32 [M, N, K] and `folds` int64 [N]. A key is the key
of the record in `<workdir>/data/labeled`: for folders, the file's path below the labeled folder. An
image is in no fold, and not in the file, if its class would be missing from the fold's training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json
from workflow import choice
from workflow.choice import Answers
from workflow.stages import Stage, model_directories, trainings, validation

FOLDER = "folds"
ANSWERS = "answers.npz"


def plan(config: ConfigDict, workdir: Path, folders: dict[str, str], strategy: str) -> list[Stage]:
    """Returns the stages of all folds: the preparation of each one, and then all trainings.

    Each model is evaluated on its fold. The arguments are those of `stages.trainings`.
    """
    preparations, others = [], []
    for fold in range(1, config.crossfit.folds + 1):
        directory = workdir / FOLDER / str(fold)
        models = model_directories(directory, config.iterations)
        prepare, *stages = trainings(config, directory, folders, strategy)
        cut = {"config.data.folds": config.crossfit.folds, "config.data.fold": fold}
        preparations.append(
            _of_fold(fold, prepare._replace(arguments={**prepare.arguments, **cut}))
        )
        for stage in stages:
            others.append(_of_fold(fold, stage))
            if stage.directory in models:
                number = models.index(stage.directory)
                others.append(
                    _of_fold(fold, validation(config, directory, number, stage.directory))
                )
    return preparations + others


def _of_fold(fold: int, stage: Stage) -> Stage:
    name = f"fold_{fold}"
    return stage._replace(name=f"{name}/{stage.name}", counted=name)


def announcement(config: ConfigDict, images: int) -> str:
    """Says what cross-fitting will cost; images: number held out for validation."""
    folds = config.crossfit.folds
    return (
        f"cross-fitting chooses the served model: {images} images are held out for validation, but "
        f"{choice.FEWEST} are needed. It trains teacher and students {folds} more times, so the "
        f"run takes about {folds + 1} times as long (--config.crossfit.folds=0 turns it off)"
    )


def collect(workdir: Path, folds: int, models: list[str]) -> Answers:
    """Joins the finished folds' answers, and writes `answers.npz`.

    Args:
      workdir: work directory of the loop.
      folds: number of folds.
      models: names of teacher and students.

    Raises:
      InputError: the folds are not those of the prepared data.
    """
    parts = [
        choice.of_evaluations(workdir / FOLDER / str(fold), models, fold)
        for fold in range(1, folds + 1)
    ]
    keys, labels, own = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("keys", "labels", "folds")
    )
    probabilities = np.concatenate([part.probabilities for part in parts], axis=1)
    prepared = read_json(workdir / "data" / "summary.json", choice.PREPARED)
    labeled = prepared["splits"]["labeled"]["images"]
    without = read_json(workdir / FOLDER / "1" / "data" / "summary.json", {"in_no_fold": int})[
        "in_no_fold"
    ]
    if len(np.unique(keys)) != len(keys) or len(keys) + without != labeled:
        raise InputError(
            f"{workdir / FOLDER} answers {len(np.unique(keys))} of {labeled} labeled images; delete"
            " it, and the same command makes it again"
        )
    order = np.argsort(keys)
    answers = Answers(
        keys[order], labels[order], tuple(models), probabilities[:, order], own[order]
    )
    answers.write(workdir / FOLDER / ANSWERS)
    return answers
