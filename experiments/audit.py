"""Audits the papers: `./run_experiment.sh audit`.

Each row of `experiments/papers/` names commands. The audit reads every command as its script would,
makes the plan that its --dry_run prints, and compares the plan with the paper's numbers. It starts
no training. A row is wrong where a recipe, a flag, a file or a heading is gone, or a number is
another one.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

import functools
import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli import app, commands
from cli.errors import InputError
from efficientnet.architectures import ARCHITECTURES
from experiments import study
from experiments.papers.chapters import CHAPTERS, counts
from experiments.papers.row import (
    DRY_RUN,
    IMPOSSIBLE,
    RUN,
    STAND_IN,
    VERDICTS,
    Differs,
    Numbers,
    Row,
)
from training import estimates, resolve, schedules
from training.method import Network
from workflow import loop, plans, train

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = Path("not-prepared")
"""Work directory of the plans; nothing is read or written there."""
TOLERANCE = 0.02
"""Papers round parameters and epochs to two or three digits."""
ROUNDED = ("parameters", "epochs", "unlabeled_epochs")

Plan = dict[str, dict[str, Any]]
"""Training -> quantity -> its value here; `data` and `loop` hold those of the whole recipe."""

_LOOP = ("noisy_student",)
_TRAININGS = ("train", "teacher", "student", "finetune", "meta_pseudo_labels")


def main() -> int:
    """Prints a line for each row and the counts; returns 1 where a row is wrong."""
    wrong = 0
    for paper, rows in CHAPTERS.items():
        print(f"== {paper}")
        for row in rows:
            errors = check_row(row)
            wrong += bool(errors)
            print(f"{'WRONG' if errors else 'ok':<6}{row.verdict:<20}{row.part}{_items(row)}")
            print("".join(f"      {error}\n" for error in errors), end="")
    print(f"{counts(CHAPTERS)}; {wrong} wrong")
    return int(wrong > 0)


def _items(row: Row) -> str:
    return f": {', '.join(row.items)}" if row.items else ""


def check_row(row: Row) -> list[str]:
    """Returns what is wrong with a row, a line each."""
    errors = []
    if row.verdict not in VERDICTS:
        errors.append(f"the verdict {row.verdict!r} is not one of {', '.join(VERDICTS)}")
    if row.verdict == IMPOSSIBLE and not row.why:
        errors.append("it is impossible here, but does not say why")
    if row.verdict != IMPOSSIBLE and not row.commands:
        errors.append("it has no command")
    if row.verdict == DRY_RUN and not row.numbers:
        errors.append("its dry run is compared with nothing")
    if row.verdict in (RUN, STAND_IN) and not row.ran:
        errors.append("it does not name the place of its results")
    errors += [error for place in row.ran if (error := _absent(place))]
    all_plans = []
    for command in row.commands:
        try:
            all_plans.append(planned(command))
        except InputError as error:
            errors.append(f"{command}: {error}")
    return [*errors, *(error for numbers in row.numbers for error in _compared(numbers, all_plans))]


def _absent(place: str) -> str:
    """Returns what is missing of a file or a heading, `docs/results.md#noise`; "" for nothing."""
    path, _, anchor = place.partition("#")
    if not (ROOT / path).exists():
        return f"no file {path}"
    if anchor and anchor not in _anchors(ROOT / path):
        return f"{path} has no heading #{anchor}"
    return ""


@functools.cache
def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _compared(numbers: Numbers, all_plans: list[Plan]) -> Iterable[str]:
    """Yields what differs in any of the plans that have the training."""
    found = [plan[numbers.training] for plan in all_plans if numbers.training in plan]
    if not found:
        known = ", ".join(dict.fromkeys(name for plan in all_plans for name in plan))
        yield f"there is no training {numbers.training!r}; the commands have {known or 'none'}"
    for here_by_name, (name, value) in itertools.product(found, numbers.values.items()):
        here = here_by_name.get(name)
        wanted = value.here if isinstance(value, Differs) else value
        if not _same(here, wanted, TOLERANCE if name in ROUNDED else 1e-6):
            yield f"{numbers.training}.{name} is {here!r}; {numbers.source}: {wanted!r}"
        if isinstance(value, Differs) and _same(here, value.paper, TOLERANCE):
            yield f"{numbers.training}.{name} is the paper's by now, {here!r}; say so in its row"


def _same(here: Any, wanted: Any, tolerance: float) -> bool:
    if (
        isinstance(here, (int, float))
        and isinstance(wanted, (int, float))
        and not isinstance(wanted, bool)
    ):
        return math.isclose(here, wanted, rel_tol=tolerance)
    return bool(here == wanted)


@functools.cache
def planned(command: str) -> Plan:
    """Returns the plan of a command line: what its --dry_run knows, as numbers.

    Raises:
      InputError: there is no such script, name, flag, recipe, setting or test file.
    """
    script, *words = shlex.split(command)
    if not (ROOT / script).is_file():
        raise InputError(f"no script {script}")
    if script == "./run_tests.sh":
        absent = [word for word in words if not (ROOT / word).is_file()]
        if absent:
            raise InputError(f"no test file {absent[0]}")
        return {}
    name = script.removeprefix("./run_").removesuffix(".sh")
    found, rest, wrong = commands.find([name, *words])
    if not found:
        raise InputError(wrong)
    values = app.parse(found, rest)
    if found.name in _LOOP:
        return _of_loop(values["config"])
    if found.name in _TRAININGS:
        return _of_training(values["config"], values["section"], values.get("init"))
    if found.name == "balance":
        return {"loop": _of_selection(values["config"])}
    if found.name == "prepare_data":
        return {"data": _of_data(values["config"])}
    if found.name == "study":
        study.check_config(values["config"])
    return {}


def _of_loop(config: ConfigDict) -> Plan:
    loop.check_loop(config)
    stages = loop.plan(config, NOWHERE, {}, "auto")
    images = estimates.images(config, NOWHERE)
    plans.describe(config, NOWHERE, {}, stages, images)
    plan: Plan = {"data": _of_data(config), "loop": _of_selection(config)}
    for training in plans.trainings(config, stages, images):
        name = training.stage.name
        kept = training.networks[0]
        plan[name] = _of_network(
            config, training.section, training.values, kept, training.model, training.size, images
        )
    return plan


def _of_training(config: ConfigDict, section: str, init: str | None) -> Plan:
    given: dict[str, str | None] = {"pseudo_labeled": None, "teacher": None}
    train.check_training(config, section, init=bool(init) or section.startswith("finetune"))
    if not section.startswith("finetune"):  # a fine-tuning needs the finished model of --init
        train.describe(config, section, NOWHERE, given)
    images = estimates.images(config, NOWHERE)
    method = train.find(config, section)
    settings_here = {
        key: value for key, value in config[section].to_dict().items() if key != "preprocessing"
    }
    values = resolve.section(
        settings_here,
        labeled_examples=images["labeled"],
        unlabeled=bool(method.unlabeled(settings_here)),
        quiet=True,
    )
    size = estimates.image_size(config, section, images)
    plan: Plan = {"data": _of_data(config)}
    networks = method.networks(values)
    for network in networks:
        model = dict(network.settings(values)["model"])
        plan[network.name or section] = _of_network(
            config, section, values, network, model, size, images
        )
    if section == "train" and config.get("finetune_last"):
        plan |= _of_training(config, "finetune", "model")
    return plan


def _of_data(config: ConfigDict) -> dict[str, Any]:
    return {**config.data.to_dict(), **config.expected.to_dict()}


def _of_selection(config: ConfigDict) -> dict[str, Any]:
    values = {"iterations": config.get("iterations"), **config.balance.to_dict()}
    if values["images_per_class"] and config.expected.classes:
        values["selected"] = values["images_per_class"] * config.expected.classes
    return values


def _of_network(
    config: ConfigDict,
    section: str,
    values: Mapping[str, Any],
    network: Network,
    model: Mapping[str, Any],
    size: int | None,
    images: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the quantities of one network of a training."""
    batch, ratio, steps = values["batch_size"], values["unlabeled_ratio"], values["steps"]
    per_epoch = images["labeled"] / batch
    schedule: Any = schedules.of_section(values, per_epoch)[network.name]
    decays = getattr(schedule, "decay_steps", math.inf)
    settings_here = {
        key: value
        for key, value in config[section].get("preprocessing", {}).items()
        if value is not None
    }
    noise = {**config.preprocessing.to_dict(), **settings_here}
    of_variant = ARCHITECTURES.get(model["name"])
    pool = images["unlabeled"] or math.inf
    return {
        **values,
        **{name: noise[name] for name in ("randaugment_layers", "randaugment_magnitude", "flip")},
        **{
            f"optimizer_{key}": value
            for key, value in network.settings(values)["optimizer"].items()
        },
        "network": model["name"],
        "parameters": estimates.count_parameters(dict(model), images["classes"], size).trained,
        "dropout": model["dropout"]
        if model.get("dropout") is not None
        else of_variant and of_variant.dropout,
        "image_size": size,
        "unlabeled_batch_size": batch * ratio,
        "epochs": steps / per_epoch,
        "unlabeled_epochs": steps * batch * ratio / pool,
        "rate": schedule.base,
        "decay_rate": getattr(schedule, "decay_rate", None),
        "decay_epochs": round(decays / per_epoch, 6),
    }
