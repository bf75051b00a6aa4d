"""Runs the whole of Algorithm 1 (Xie et al. 2020): `run_noisy_student.sh`.

It goes from images to an exported student. It runs the stage scripts one after another, each in its
own process. It prints each command, so that a person can repeat any of them by hand. Each
stage resumes by itself. `workflow/stages.py` knows their order.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli import app, recipes, start, work_dirs
from cli.errors import InputError
from cli.json_files import read_json, to_json, write_json
from data import fingerprint, prepare, sources
from workflow import by_device, choice, cost, hosts, planner, shard_jobs, train
from workflow.iterations import exhausted, names_of, require_unlabeled, train_and_choose
from workflow.labels import answer_stages, write_after
from workflow.loop_checks import check_loop, require_flags_read
from workflow.loop_results import SUMMARY, summarize, table
from workflow.running import flags_of, run_stage
from workflow.settings import of_recipe
from workflow.stages import Stage, ending, plan, trainings


def main(
    config: ConfigDict,
    workdir: str,
    labeled: str | None,
    unlabeled: str | None,
    test: str | None,
    strategy: str,
    tpu: str,
    iterations: str | None,
    dry_run: bool,
    beam_options: list[str],
    init: str | None = None,
    labels: str | None = None,
    devices: int = 0,
    memory: str | None = None,
    device: str | None = None,
) -> None:
    """Runs the stages that are not done, prints the table and writes `summary.json`.

    The arguments are the command's flags.
    """
    flags, target = app.recipe_flags(), planner.Target.of_flags(devices, memory, device)
    if target and not dry_run:
        raise InputError(
            "--devices, --memory and --device are for --dry_run; add it, or leave them out"
        )
    _loop(
        config,
        workdir,
        labeled,
        unlabeled,
        test,
        strategy,
        tpu,
        iterations,
        dry_run,
        beam_options,
        flags,
        init,
        labels,
        target,
    )


def _loop(
    config: ConfigDict,
    workdir: str,
    labeled: str | None,
    unlabeled: str | None,
    test: str | None,
    strategy: str,
    tpu: str,
    iterations: str | None,
    dry_run: bool,
    beam_options: list[str],
    config_flags: list[str],
    init: str | None = None,
    labels: str | None = None,
    target: planner.Target | None = None,
) -> None:
    """Does the work of `main`; `config_flags` are the `--config` flags that the stages get."""
    directory = Path(workdir).expanduser().resolve()
    if "," in str(directory):
        raise InputError(
            f"--workdir: {directory} has a comma, which stands between the models to evaluate; name"
            " another directory"
        )
    if strategy == hosts.STRATEGY and iterations:
        raise InputError(
            "--iterations cannot be combined with --strategy=multi_worker; leave one out"
        )
    config, config_flags = by_device.settle(config, config_flags, directory, init, dry_run=dry_run)
    if init or config.init:
        config = _with_init(config, init or config.init)
    if init:  # each stage checks its settings by it
        config_flags = [*config_flags, f"--config.init={config.init}"]
    check_loop(config)
    require_flags_read(config, config_flags)
    shard_jobs.pipeline_options(beam_options)
    given = {"labeled": labeled, "unlabeled": unlabeled, "test": test}
    folders = {
        name: sources.absolute(path, config.data.source) for name, path in given.items() if path
    }
    folders |= {"labels": sources.absolute(labels, "manifest")} if labels else {}
    if iterations:
        config = extended(config, folders, directory, iterations, open_it=not dry_run)
    if dry_run and target:
        print(
            planner.dry_run(
                config, directory, folders, plan(config, directory, folders, strategy), target
            )
        )
        return
    if dry_run:
        cost.dry_run(config, directory, folders, plan(config, directory, folders, strategy))
        return
    team = hosts.join(strategy, directory)
    with team.reporting():
        _run(
            config,
            directory,
            folders,
            strategy,
            tpu,
            team,
            config_flags,
            beam_options,
            extends=bool(iterations),
        )


def _run(
    config: ConfigDict,
    directory: Path,
    folders: dict[str, str],
    strategy: str,
    tpu: str,
    team: hosts.Chief | hosts.Follower,
    config_flags: list[str],
    beam_options: list[str],
    *,
    extends: bool,
) -> None:
    """Runs the stages that are not done. `extends` tells whether --iterations asks for more."""
    created = not directory.exists()
    if not (directory / "summary.json").exists():
        require_weights(config, trainings(config, directory, folders, strategy))
        # On all hosts: where it refuses, the first one leaves nothing that the others could see.
        cost.announce(config, directory, folders, plan(config, directory, folders, strategy))
    if isinstance(team, hosts.Follower):
        team.begin(json.loads(to_json(resolved(config, folders))))
    done = work_dirs.start(
        directory,
        resolved(config, folders),
        of_parts=True,
        shared=team.follows,
        summary_schema=SUMMARY,
    )
    if done:
        fingerprint.require_unchanged(
            directory / "data", prepare.with_locations(config, folders).data
        )
        work_dirs.say_done(directory, _done(directory, done))
        return

    def run(stage: Stage) -> None:
        labels = stage.script in ("run_pseudo_label.sh", "run_evaluate.sh")
        if labels and strategy not in ("auto", hosts.STRATEGY):
            stage = stage._replace(arguments={**stage.arguments, "strategy": strategy})
        if tpu and "strategy" in stage.arguments:
            stage = stage._replace(arguments={**stage.arguments, "tpu": tpu})
        flags = flags_of(stage, config_flags, beam_options)
        if isinstance(team, hosts.Follower):
            team.take_part(stage, start.script(stage.script, *flags))
            return
        run_stage(stage, directory, flags, created)
        write_after(stage.directory, directory)

    prepare_data, *stages = trainings(config, directory, folders, strategy)
    run(prepare_data)
    require_unlabeled(prepare_data.directory)
    chosen = train_and_choose(
        config, directory, folders, strategy, stages, run, write=not team.follows
    )
    names = list(chosen["models"]) or names_of(config.iterations)
    students = len(names) - 1
    for stage in answer_stages(config, directory, students):
        run(stage)
    for stage in ending(config, directory, strategy, students, names.index(chosen["served"])):
        run(stage)
    if isinstance(team, hosts.Follower):
        team.wait_for(directory / "summary.json", "the summary")
        print(f"summary: {directory / 'summary.json'}")
        return
    summary = {
        **summarize(directory, students),
        **{key: chosen[key] for key in ("served", "verdict")},
    }
    rows = [summary["teacher"], *summary["students"]]
    summary["exported"] = summary.get("finetuned") or rows[names.index(chosen["served"])]
    scores = (
        [model["top1"] for model in chosen["models"].values()]
        if chosen["on"] == choice.VALIDATION
        else []
    )
    # The same --iterations=+N asks for N more each time.
    done_text = None if extends else _done(directory, summary)
    work_dirs.finish(
        directory, {**summary, **({"validation_top1": scores} if scores else {})}, done_text
    )
    print(table(summary))
    print(
        f"exported model: {summary['export']}\nfigure: {summary['figure']}\nreport:"
        f" {summary['report']}"
    )
    print(f"summary: {directory / 'summary.json'}")


def run(
    *,
    labeled: str | os.PathLike[str] | None = None,
    unlabeled: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    workdir: str | os.PathLike[str],
    recipe: str = "configs/noisy_student/image_folder.py",
    settings: Mapping[str, Any] | None = None,
    init: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    strategy: str = "auto",
    tpu: str = "",
) -> dict[str, Any]:
    """Does what `run_noisy_student.sh` does, from images to an exported student.

    The same call again continues. Each stage runs in its own process, so this process keeps
    its memory and its GPU.

    Args:
      labeled: labeled images, [FORMAT:]LOCATION (docs/data.md), by default a folder
        DIR/<class>/*.jpg.
      unlabeled: unlabeled images; by default a folder, nested as you like.
      test: test images; None: a part of the labeled ones is held out.
      workdir: directory for everything.
      recipe: PATH[:ARGUMENT] of a recipe.
      settings: key with dots -> value instead of the recipe's, such as {"student.steps": 1000}.
      init: weights to start from: a published name, a file or a directory (docs/models.md).
      labels: list of labels that a person corrected or added (`data.corrections`).
      strategy: devices to train, label and evaluate on; see `training.strategy.create`.
      tpu: name or address of the TPU.

    Returns:
      What `summary.json` holds: `teacher`, `students`, `export` (directory of the SavedModel),
      `report`, `seconds`, ...

    Raises:
      InputError: unusable input, or settings that cannot work.
      RuntimeError: a stage failed; it has said on stderr what is wrong.
    """
    words = [
        f"--config={recipe}",
        *(f"--config.{key}={value}" for key, value in (settings or {}).items()),
    ]
    folders = {"labeled": labeled, "unlabeled": unlabeled, "test": test}
    options: dict[str, Any] = {
        name: os.fspath(path) if path is not None else None for name, path in folders.items()
    }
    options.update(
        {"strategy": strategy, "tpu": tpu, "iterations": None, "dry_run": False, "beam_options": []}
    )
    options |= {
        name: os.fspath(path) if path is not None else None
        for name, path in {"init": init, "labels": labels}.items()
    }
    try:
        _loop(
            recipes.from_flags(
                *words, declared=of_recipe, replaced={"init": f"--init={init}"} if init else None
            ),
            os.fspath(workdir),
            **options,
            config_flags=words,
        )
    except SystemExit as stop:
        raise RuntimeError(
            f"a stage of {os.fspath(workdir)} ended with exit code {stop.code}; see its message"
            " above"
        ) from stop
    return read_json(Path(workdir).expanduser() / "summary.json", SUMMARY)


def _with_init(config: ConfigDict, init: str) -> ConfigDict:
    """Returns the recipe with the weights to start from; a path becomes an absolute one."""
    config = config.copy_and_resolve_references()
    config.init = (
        os.path.abspath(init) if os.path.exists(init) or os.path.exists(f"{init}.index") else init
    )
    return config.lock()


def require_weights(config: ConfigDict, stages: list[Stage]) -> None:
    """Opens the weights that the trainings start from, or downloads them: before the first stage.

    Raises:
      InputError: they cannot be used, or not by the networks of the recipe.
    """
    for stage in stages:
        if config.init and stage.arguments.get("init") == config.init:
            section = stage.arguments.get("section", "teacher")
            train.open_init(train.find(config, section), config[section].to_dict(), config.init)


def _done(directory: Path, summary: dict[str, Any]) -> str:
    return (
        f"{table(summary)}\n{directory} is done; delete it, or name another --workdir, to run again"
    )


def extended(
    config: ConfigDict, folders: dict[str, str], workdir: Path, added: str, *, open_it: bool
) -> ConfigDict:
    """Returns `config` with the iterations that `--iterations=+N` asks for.

    These are the iterations of a finished run and N more, or those of a run that is not finished.

    Args:
      config: recipe of the run.
      folders: source directories of the run, by flag name.
      workdir: work directory of the run.
      added: value of the flag.
      open_it: open a finished run for the new iterations. Its evaluation and the fine-tuned model
        are kept under other names.

    Raises:
      InputError: N is not a number, there is no such run in `workdir`, or the run stopped by its
        patience.
    """
    if not re.fullmatch(r"\+[1-9][0-9]*", added):
        raise InputError(
            f"--iterations={added} must be +1, +2, ...; for a new run use --config.iterations=N"
        )
    if not (workdir / "config.json").exists():
        raise InputError(f"--iterations={added}: there is no run in {workdir} to continue")
    config = config.copy_and_resolve_references()
    config.iterations = read_json(workdir / "config.json", {"iterations": int})["iterations"]
    # A finished run must be the same in all other settings. A dry run only looks.
    done = work_dirs.start(
        workdir,
        resolved(config, folders),
        of_parts=open_it,
        shared=not open_it,
        summary_schema=SUMMARY,
    )
    if done:
        before = len(done["students"])
        if config.patience and exhausted(done.get("validation_top1", []), config.patience):
            raise InputError(
                f"--iterations={added}: the run in {workdir} stopped by its patience; start a new "
                "run with more patience"
            )
        # Otherwise this command was killed after it had written the new number.
        if before == config.iterations:
            config.iterations += int(added)
        # The summary goes last: until then the same command finds all that there is to do.
        if open_it:
            for name in ("evaluation", "finetuned"):
                if (workdir / name).exists():
                    (workdir / name).rename(workdir / f"{name}_of_{before}")
            write_json(workdir / "config.json", resolved(config, folders))
            (workdir / "summary.json").unlink()
    return config.lock()


def resolved(config: ConfigDict, folders: dict[str, str]) -> dict[str, Any]:
    """Returns the content of a loop's `config.json`: recipe, and source directories by flag."""
    values = {**config.to_dict(), "folders": folders}
    # It says what to do with a finished run, not what the run is.
    values["data"].pop("use_as_prepared", None)
    return values
