"""Trains by one method, from images to an exported model: `run_train.sh` without --data.

Runs prepare, train, fine-tune (where the recipe has `finetune_last`), evaluate and export one after
another, each in its own process, and prints each command. Each stage resumes by itself. With
--data it trains on prepared data alone. `workflow/loop.py` does the same for Noisy Student's loop.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli import app, recipes, work_dirs
from cli.errors import InputError
from cli.json_files import read_json
from data import fingerprint, prepare, sources
from training import estimates
from training.method import IMAGES, NO_IMAGES
from workflow import by_device, cost, iterations, loop, planner, settings, times, train
from workflow.loop_results import SECONDS, table_of
from workflow.running import flags_of, run_stage
from workflow.settings import of_recipe
from workflow.stages import Stage, check_baseline, sections_read, validated

SUMMARY = {
    "models": dict,
    "seconds": SECONDS,
    "export": str,
    "figure": str,
    "report": str,
}
"""Schema of `summary.json`."""
DEVICES = ("strategy", "cpu_devices", "tpu")
"""Flags of a stage that choose its devices."""


def main(
    config: ConfigDict,
    workdir: str,
    data: str | None = None,
    labeled: str | None = None,
    unlabeled: str | None = None,
    test: str | None = None,
    labels: str | None = None,
    section: str = "train",
    iteration: int = 0,
    pseudo_labeled: str | None = None,
    teacher: str | None = None,
    init: str | None = None,
    dry_run: bool = False,
    strategy: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
    profile_steps: str | None = None,
    selection: str | None = None,
    devices: int = 0,
    memory: str | None = None,
    device: str | None = None,
    replica_cores: int = 1,
) -> None:
    """Trains on prepared data, or runs every stage. The arguments are the command's flags."""
    training: dict[str, Any] = {
        "section": section,
        "iteration": iteration,
        "pseudo_labeled": pseudo_labeled,
        "teacher": teacher,
        "init": init,
        "strategy": strategy,
        "cpu_devices": cpu_devices,
        "tpu": tpu,
        "profile_steps": profile_steps,
        "replica_cores": replica_cores,
        "selection": selection,
    }
    images = {"labeled": labeled, "unlabeled": unlabeled, "test": test, "labels": labels}
    target = planner.Target.of_flags(devices, memory, device)
    if target and (data or not dry_run):
        raise InputError(
            "--devices, --memory and --device plan all stages: they need --dry_run, and no --data"
        )
    if not data:
        run_stages(
            config, workdir, images, training, app.recipe_flags(), dry_run=dry_run, target=target
        )
        return
    for name, path in images.items():
        if path:
            raise InputError(f"--{name}: --data={data} is prepared already; leave one out")
    train.main(config, workdir, data, dry_run=dry_run, **training)
    if dry_run and (Path(data) / "summary.json").exists():
        print(_time(config, Path(workdir), data, training), flush=True)


def _time(config: ConfigDict, workdir: Path, data: str, training: Mapping[str, Any]) -> str:
    """Measures a step of a training on prepared data; returns the training's time as text."""
    section = training["section"]
    init = training["init"] or train.initial_of(config, section)
    options = {"section": section, "data": data, **({"init": init} if init else {})}
    options["strategy"] = training["strategy"]
    stage = Stage(name_of(config, section), "run_train.sh", workdir, options)
    return times.table(alone(config, init), [stage], estimates.images(config, Path(data)))


def run_method(
    *,
    recipe: str,
    labeled: str | os.PathLike[str] | None = None,
    unlabeled: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    workdir: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    init: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    strategy: str = "auto",
    tpu: str = "",
) -> dict[str, Any]:
    """Does what `run_train.sh` does without --data. The same call again continues.

    Args:
      recipe: PATH[:ARGUMENT] of a recipe with a section `train`.
      labeled: labeled images; see `workflow.loop.run` for this and all following arguments.
      unlabeled: unlabeled images; the method says whether it needs them.
      test: test images.
      workdir: directory for everything.
      settings: key with dots -> value instead of the recipe's.
      init: weights to start from.
      labels: list of labels that a person corrected or added.
      strategy: devices of the training stages.
      tpu: name or address of the TPU.

    Returns:
      What `summary.json` holds: `models` (name -> numbers), `export`, `report`, `seconds`, ...

    Raises:
      InputError: unusable input, or settings that cannot work.
      RuntimeError: a stage failed; it has said on stderr what is wrong.
    """
    words = [
        f"--config={recipe}",
        *(f"--config.{key}={value}" for key, value in (settings or {}).items()),
    ]
    given = {"labeled": labeled, "unlabeled": unlabeled, "test": test, "labels": labels}
    images = {name: os.fspath(path) if path is not None else None for name, path in given.items()}
    training = {
        "init": os.fspath(init) if init is not None else None,
        "strategy": strategy,
        "tpu": tpu,
    }
    try:
        run_stages(
            recipes.from_flags(
                *words, declared=of_recipe, replaced={"init": f"--init={init}"} if init else None
            ),
            os.fspath(workdir),
            images,
            training,
            words,
        )
    except SystemExit as stop:
        ended = f"a stage of {os.fspath(workdir)} ended with exit code {stop.code}"
        raise RuntimeError(f"{ended}; see its message above") from stop
    return read_json(Path(workdir).expanduser() / "summary.json", SUMMARY)


def run_stages(
    config: ConfigDict,
    workdir: str,
    images: Mapping[str, str | None],
    training: Mapping[str, Any],
    config_flags: list[str],
    *,
    dry_run: bool = False,
    target: planner.Target | None = None,
) -> None:
    """Runs the stages that are not done, prints the table and writes `summary.json`.

    Args:
      config: the recipe.
      workdir: directory for everything.
      images: `labeled`, `unlabeled` and `test`, as [FORMAT:]LOCATION or None; `labels`, a list or
        None.
      training: the training's flags by name; `section` and `strategy` have defaults.
      config_flags: the `--config` flags that the stages get.
      dry_run: print what would be done, and do nothing.
      target: the devices that a dry run plans for; None: no plan for devices.

    Raises:
      InputError: unusable input, or settings that cannot work.
    """
    directory = Path(workdir).expanduser().resolve()
    options: dict[str, Any] = {"section": "train", "strategy": "auto"}
    options |= {name: value for name, value in training.items() if value}
    for name in ("cpu_devices", "replica_cores"):
        if options.get(name) == 1:
            del options[name]
    if "," in str(directory):
        raise InputError(f"--workdir: {directory} has a comma; name another directory")
    config, config_flags = by_device.settle(
        config, config_flags, directory, options.get("init"), dry_run=dry_run
    )
    check_run(config, options)
    section = options["section"]
    init = options.get("init") or train.initial_of(config, section)
    if init:
        is_path = os.path.exists(init) or os.path.exists(f"{init}.index")
        options["init"] = os.path.abspath(init) if is_path else init
        if training.get("init") and "init" in config:  # each stage checks its settings by it
            config_flags = [*config_flags, f"--config.init={options['init']}"]
    given = {name: path for name, path in images.items() if path}
    formats = {"labels": "manifest"}
    folders = {
        name: sources.absolute(path, formats.get(name, config.data.source))
        for name, path in given.items()
    }
    no_pool = not (
        folders.get("unlabeled") or config.data.unlabeled or _needs_images(config, section)
    )
    if no_pool and config.data.source != "digits" and config.data.labeled_as_unlabeled == "nothing":
        # Prepared data have a pool, although this method reads nothing of it.
        config = config.copy_and_resolve_references()
        config.data.labeled_as_unlabeled = "all"
        config_flags = [*config_flags, "--config.data.labeled_as_unlabeled=all"]
    stages = plan(config, directory, folders, options)
    check_baseline(config, stages)
    settings.require_read(config, recipes.overrides(*config_flags), sections_read(stages))
    if dry_run:
        if target:
            print(
                planner.dry_run(
                    alone(config, options.get("init")), directory, folders, stages, target
                )
            )
        else:
            cost.dry_run(alone(config, options.get("init")), directory, folders, stages)
        return
    absent = missing(config, section, folders, directory / "data")
    if absent:
        raise InputError(f"neither prepared data (--data) nor images: {'; '.join(absent)}")
    created = not directory.exists()
    if init and not (directory / "summary.json").exists():  # checked now, not after the first stage
        method = train.find(config, section)
        train.open_init(method, config[section].to_dict(), options["init"])
    if not (directory / "summary.json").exists():
        cost.announce(alone(config, options.get("init")), directory, folders, stages)
    kept = {name: options.get(name) for name in ("section", "init")}
    resolved = {**loop.resolved(config, folders), "training": kept}
    done = work_dirs.start(directory, resolved, of_parts=True, summary_schema=SUMMARY)
    if done:
        fingerprint.require_unchanged(
            directory / "data", prepare.with_locations(config, folders).data
        )
        work_dirs.say_done(directory, _done(directory, done))
        return
    served = stages[-1].arguments["model"]
    for stage in stages:
        if stage.name == "export":
            stage = stage._replace(arguments={**stage.arguments, "model": served})
        run_stage(stage, directory, flags_of(stage, config_flags, []), created)
        if stage.name == "prepare" and _needs_images(config, section):
            iterations.require_unlabeled(stage.directory)
        if stage.name == "finetune" and (directory / "data" / "validation").is_dir():
            validation = validate(config, directory, stage.arguments["init"], served)
            of_evaluation = next(other for other in stages if other.name == "evaluate").arguments
            devices = {name: of_evaluation[name] for name in DEVICES if name in of_evaluation}
            validation = validation._replace(arguments={**validation.arguments, **devices})
            run_stage(validation, directory, flags_of(validation, config_flags, []), created)
            served = better(validation.directory, stage.arguments["init"], served)
    summary = {**summarize(directory), "served": served.name}
    summary["exported"] = summary["models"][served.name]
    work_dirs.finish(directory, summary, _done(directory, summary))
    print(table(summary))
    print(f"exported model: {summary['export']}\nfigure: {summary['figure']}")
    print(f"report: {summary['report']}\nsummary: {directory / 'summary.json'}")


def check_run(config: ConfigDict, options: Mapping[str, Any]) -> None:
    """Raises InputError where a setting of any stage is impossible: before the first one runs."""
    section = options["section"]
    if options["strategy"] == "multi_worker":
        raise InputError("--strategy=multi_worker needs --data: all stages are for one machine")
    settings.check_recipe(config)
    method = train.find(config, section)
    if method.unlabeled(config[section]) not in (NO_IMAGES, IMAGES):
        raise InputError(
            f"--data is missing: {config[section].method} learns from what other stages make; "
            "docs/meta_pseudo_labels.md has their commands",
        )
    for name in ("pseudo_labeled", "teacher", "selection"):
        if name in options:
            raise InputError(f"--{name} has no effect without --data; leave it out")
    if config.evaluate.split == "validation" and not config.data.validation_size:
        raise InputError("config.evaluate.split=validation needs data.validation_size")
    init = options.get("init") or train.initial_of(config, section)
    train.check_training(config, section, init=bool(init))
    if config.get("finetune_last"):
        train.check_training(config, "finetune", init=True)


def plan(
    config: ConfigDict,
    workdir: Path,
    folders: dict[str, str],
    options: Mapping[str, Any],
) -> list[Stage]:
    """Returns the stages in order; `options` are the flags of the training."""
    data, evaluation = workdir / "data", workdir / "evaluation"
    model = workdir / name_of(config, options["section"])
    devices = {name: options[name] for name in DEVICES if name in options}
    stages = [
        Stage("prepare", "run_prepare_data.sh", data, folders),
        Stage(model.name, "run_train.sh", model, {**options, "data": data}),
    ]
    models = [model]
    if config.get("finetune_last"):
        models.append(workdir / "finetuned")
        tuning = {**devices, "init": model, "data": data}
        stages.append(Stage("finetune", "run_finetune.sh", models[-1], tuning))
    names = ",".join(str(path) for path in models)
    extra = {"init": options["init"]} if options.get("init") else {}
    extra |= devices if options.get("strategy", "auto") != "auto" else {}
    return [
        *stages,
        Stage(
            "evaluate",
            "run_evaluate.sh",
            evaluation,
            {"data": data, "model": names, "split": config.evaluate.split, **extra},
        ),
        Stage(
            "export",
            "run_export.sh",
            workdir / "export",
            {"model": models[-1], "evaluation": evaluation},
        ),
    ]


def validate(config: ConfigDict, workdir: Path, *models: Path) -> Stage:
    """Returns the stage that evaluates models on the validation split."""
    arguments = validated(config, workdir, *models)
    return Stage("validate", "run_evaluate.sh", workdir / "validation", arguments)


def better(validation: Path, model: Path, tuned: Path) -> Path:
    """Returns the fine-tuned model where it has the greater top-1 on the validation split."""
    schema = {"models": {path.name: {"top1": float} for path in (model, tuned)}}
    models = read_json(validation / "summary.json", schema)["models"]
    return tuned if models[tuned.name]["top1"] > models[model.name]["top1"] else model


def name_of(config: ConfigDict, section: str) -> str:
    """Returns the model's name: `student` where it has a teacher, else its method's."""
    return "student" if "teacher" in config[section] else str(config[section].method)


def _needs_images(config: ConfigDict, section: str) -> bool:
    return train.find(config, section).unlabeled(config[section]) == IMAGES


def missing(config: ConfigDict, section: str, folders: dict[str, str], data: Path) -> list[str]:
    """Returns what the first stage needs and does not find, of the images that the method uses."""
    absent = estimates.missing(config, folders, data)
    if _needs_images(config, section):
        return absent
    return [text for text in absent if text != "--unlabeled is not given"]


def alone(config: ConfigDict, init: str | None) -> ConfigDict:
    """Returns the recipe for `cost`, with the weights to start from.

    It leaves out what only Noisy Student's loop does.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.crossfit = ConfigDict({"folds": 0})
        config.patience, config.init = None, init
    return config.lock()


def summarize(workdir: Path) -> dict[str, Any]:
    """Returns each model's numbers, where the export is, and each stage's seconds."""
    evaluation, export = workdir / "evaluation", workdir / "export"
    schema = {"models": dict, "figures": {"summary": str}, "report": str}
    evaluated = work_dirs.require_finished(evaluation, "evaluation", "run_evaluate.sh", schema)
    exported = work_dirs.require_finished(export, "export", "run_export.sh", {"export": str})
    return {
        "models": evaluated["models"],
        "export": exported["export"],
        "figure": evaluated["figures"]["summary"],
        "report": evaluated["report"],
        "seconds": read_json(workdir / "seconds.json", SECONDS),
    }


def table(summary: Mapping[str, Any]) -> str:
    """Returns a line for each stage: its numbers, where it made a model, and its seconds."""
    models = dict(summary["models"])
    return table_of({**models, "finetune": models.get("finetuned")}, summary["seconds"])


def _done(directory: Path, summary: Mapping[str, Any]) -> str:
    again = "delete it, or name another --workdir, to run again"
    return f"{table(summary)}\n{directory} is done; {again}"
