"""Runs a study: one recipe under several conditions and seeds, compared pairwise.

The command is `run_experiment.sh study`. Each condition ("run") and seed is a call of the recipe's
own script in its own directory, or of several stages' scripts, one after another. A study that was
interrupted goes on with the run that was not finished.

What the runs have in common (the data, the teacher) is made once per seed. The first run makes it.
The others get a link, unless their own flags change it. The stage itself refuses a link where their
configs differ in what it depends on. `configs/studies/base.py` says what a study's config holds.

`readings.jsonl` has a line for each finished run: its name, its seed, and what is read from it, in
percent. So a long study can be made piece by piece, with `only`, and looked at meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cli import start, termination, work_dirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, reading, to_json, write_json
from data import sources
from evaluation.statistics import gain_over_seeds, holm
from experiments.study_figure import figure
from experiments.study_runs import commands, linked, run_directory, seeds


def main(
    config: ConfigDict,
    workdir: str,
    jobs: int = 1,
    dry_run: bool = False,
    labeled: str | None = None,
    unlabeled: str | None = None,
    test: str | None = None,
    only: str | None = None,
) -> None:
    """Runs what is not done, then writes `results.json`, `results.md` and `results.png`.

    The files are written into `workdir`. The arguments are the command's flags. With `only` it does
    the runs named there, and the results wait for the others.
    """
    config = with_images(config, {"labeled": labeled, "unlabeled": unlabeled, "test": test})
    check_config(config)
    chosen = selected(config, only)
    directory = Path(workdir).expanduser().resolve()
    if dry_run:
        from experiments import study_plan  # here, since it needs TensorFlow

        print(study_plan.plan(config, directory))
        return
    done = work_dirs.start(directory, config.to_dict())
    if not done:
        run_all(config, directory, jobs, chosen)
        left = [
            f"{name}:{seed}"
            for name, seed in selected(config, None)
            if not finished(config, directory, name, seed)
        ]
        if left:
            print(
                f"left: {', '.join(left)}; the same command without --only does them and writes the"
                " results"
            )
            return
        done = results(config, directory)
        write_json(directory / "results.json", done)
        with atomic_path(directory / "results.md") as temporary:
            temporary.write_text(markdown(config, done), encoding="utf-8")
        figure(config, done, directory / "results.png")
        work_dirs.finish(directory, done)
    text = work_dirs.shown(directory, done, functools.partial(markdown, config))
    work_dirs.say_done(
        directory,
        f"{text}\nresults: {directory / 'results.json'}\nfigure: {directory / 'results.png'}",
    )


def with_images(config: ConfigDict, given: Mapping[str, str | None]) -> ConfigDict:
    """Returns the study with the user's images, which its runs get as flags.

    Raises:
      InputError: a study of the user's photographs has none, or another study is given some.
    """
    flags = tuple(
        f"--{name}={sources.absolute(path, 'image_folder')}" for name, path in given.items() if path
    )
    if config.of_photographs and not given["labeled"]:
        raise InputError(
            "--labeled is missing; name the folder of labeled photographs, PHOTOS/CLASS/*"
        )
    if flags and not config.of_photographs:
        raise InputError(
            f"{flags[0].partition('=')[0]}: this study has its own images; leave it out, or give"
            " it in config.flags"
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.flags = (*config.flags, *flags)
    return config.lock()


def selected(config: ConfigDict, only: str | None) -> list[tuple[str, int]]:
    """Returns the runs and seeds to do, in the study's order.

    For each seed, they include the run that makes what the seed's runs share.

    Args:
      config: the study.
      only: NAME or NAME:SEED, separated by commas; None: all.

    Raises:
      InputError: the study has no such run or seed.
    """
    runs = [(row[0], seed) for seed in seeds(config) for row in config.runs]
    if only is None:
        return runs
    wanted: set[tuple[str, int]] = set()
    for word in only.split(","):
        name, _, seed = word.partition(":")
        found = [run for run in runs if run[0] == name and seed in ("", str(run[1]))]
        if not found:
            names = ", ".join(row[0] for row in config.runs)
            raise InputError(
                f"--only={only}: there is no run {word}; the runs are {names}, the seeds "
                f"{seeds(config)[0]} to {seeds(config)[-1]}"
            )
        wanted.update(found)
    if config.shared:
        wanted |= {(runs[0][0], seed) for _, seed in wanted}
    return [run for run in runs if run in wanted]


def check_config(config: ConfigDict) -> None:
    """Raises InputError where the study cannot be run as it stands."""
    if config.correction not in ("none", "holm"):
        raise InputError(f"config.correction is {config.correction!r}; it can be none or holm")
    if config.seeds < 2:
        raise InputError(f"config.seeds is {config.seeds}; a comparison needs at least 2")
    runs, readings = [row[0] for row in config.runs], [name for name, _, _ in config.readings]
    for name, _, *method in config.runs:
        if method and method[0] not in config.methods:
            raise InputError(
                f"config.runs: {name} has the method {method[0]!r}; known: "
                f"{', '.join(config.methods)}"
            )
    for name, origin, _ in config.readings:
        if origin not in runs:
            raise InputError(
                f"config.readings: {name} is read from run {origin!r}; the runs are "
                f"{', '.join(runs)}"
            )
    for better, worse, _ in config.claims:
        for name in (better, worse):
            if name not in readings:
                raise InputError(
                    f"config.claims: there is no reading {name!r}; the readings are "
                    f"{', '.join(readings)}"
                )


def python(words: Sequence[str]) -> list[str]:
    """Returns the words of a script's call as a call of Python."""
    return start.script(Path(words[0]).name, *words[1:])


def run_all(
    config: ConfigDict, workdir: Path, jobs: int, chosen: Sequence[tuple[str, int]]
) -> None:
    """Does what is not finished of the `chosen` runs.

    Does `jobs` seeds at a time, and the runs of a seed in their order.
    """
    todo = [(name, seed) for name, seed in chosen if not finished(config, workdir, name, seed)]
    total, began = len(chosen), time.monotonic()
    print(f"{total - len(todo)} of {total} runs are done", flush=True)
    ended: list[str] = []
    stop, writing = threading.Event(), threading.Lock()
    tell_readings(config, workdir)

    def run_seed(seed: int) -> None:
        for name in [name for name, of in todo if of == seed]:
            if stop.is_set():
                return
            try:
                run(
                    config,
                    workdir,
                    name,
                    seed,
                    max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0,
                )
            except BaseException:
                stop.set()  # the other seeds end with their current run
                raise
            ended.append(name)
            with writing:
                tell_readings(config, workdir)
            left = (time.monotonic() - began) / len(ended) * (len(todo) - len(ended)) / 60
            print(
                f"{name}, seed {seed}: done; {total - len(todo) + len(ended)} of {total},"
                f" {left:.0f} min left",
                flush=True,
            )

    def leave() -> None:
        stop.set()
        termination.terminate_running()  # each run's thread then leaves with its exit code

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, termination.on_sigterm(leave):
        futures = [pool.submit(run_seed, seed) for seed in seeds(config)]
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        future.result()


def summary_path(config: ConfigDict, workdir: Path, name: str, seed: int) -> Path:
    """Returns the path of a run's summary: that of its last stage."""
    return commands(config, workdir, name, seed)[-1].directory / "summary.json"


def finished(config: ConfigDict, workdir: Path, name: str, seed: int) -> bool:
    """Tells whether a run has its summary."""
    return summary_path(config, workdir, name, seed).exists()


def tell_readings(config: ConfigDict, workdir: Path) -> None:
    """Writes `readings.jsonl`: a line for each finished run that something is read from."""
    lines = []
    for name, seed in selected(config, None):
        found = {reading: path for reading, origin, path in config.readings if origin == name}
        if found and finished(config, workdir, name, seed):
            lines.append(
                {
                    "run": name,
                    "seed": seed,
                    "top1": {key: read(config, workdir, name, seed, found[key]) for key in found},
                }
            )
    with atomic_path(workdir / "readings.jsonl") as temporary:
        temporary.write_text("".join(f"{to_json(line)}\n" for line in lines), encoding="utf-8")


def read(config: ConfigDict, workdir: Path, name: str, seed: int, path: str) -> float:
    """Returns the number at a dotted path of a finished run's summary, in percent.

    Raises:
      InputError: the summary has no such number.
    """
    file = summary_path(config, workdir, name, seed)
    with reading(file):
        return value(read_json(file, dict), path)


def run(config: ConfigDict, workdir: Path, name: str, seed: int, threads: int = 0) -> None:
    """Does one run of the recipe on `threads` threads; 0 leaves their number to TensorFlow.

    Exits with the script's exit code where the script fails.
    """
    directory = run_directory(workdir, name, seed)
    directory.mkdir(parents=True, exist_ok=True)
    for part in linked(config, name):
        if not (directory / part).exists():
            (directory / part).unlink(missing_ok=True)  # a link without its target
            (directory / part).symlink_to(
                os.path.relpath(run_directory(workdir, config.runs[0][0], seed) / part, directory)
            )
    share = (
        {f"TF_NUM_{kind}OP_THREADS": str(threads) for kind in ("INTER", "INTRA")} if threads else {}
    )
    for command in commands(config, workdir, name, seed):
        with open(directory.parent / f"seed_{seed}.log", "a", encoding="utf-8") as log:
            code = termination.call(
                python(command.words),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **share},
            )
        if code:
            print(
                f"./{' '.join(command.words)} failed with exit code {code}; see {log.name}",
                file=sys.stderr,
            )
            sys.exit(code)


def value(summary: Any, path: str) -> float:
    """Returns the number at a dotted path of a summary, in percent: "students.-1.top1"."""
    for key in path.split("."):
        summary = summary[int(key)] if isinstance(summary, list) else summary[key]
    return 100.0 * float(summary)


def corrected(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns `compare`'s claims with Holm's correction.

    It adds `p_holm`, and the verdict at 0.05 by it.
    """
    p_values = [
        claim["p"] if claim["p"] is not None else float(not claim["difference"]) for claim in claims
    ]
    found = []
    for claim, p in zip(claims, holm(p_values)):
        decided = "holds" if claim["difference"] > 0 else "opposite"
        found.append({**claim, "p_holm": p, "verdict": decided if p <= 0.05 else "not decided"})
    return found


def compare(better: Sequence[float], worse: Sequence[float]) -> dict[str, Any]:
    """Compares two readings, paired over seeds.

    Args:
      better: the reading that is claimed to be higher, one number per seed, in percent.
      worse: the other reading, for the same seeds.

    Returns:
      `difference` (mean of better - worse, points), `low` and `high` (its 95 % interval, Student's
      t), `p` (paired t-test; None where all differ by the same), and `verdict`: "holds" or
      "opposite" where the interval leaves out 0, else "not decided".
    """
    gain = gain_over_seeds(worse, better)
    assert gain.interval  # `check_config` wants two seeds
    low, high = gain.interval
    verdict = "holds" if low > 0 else "opposite" if high < 0 else "not decided"
    return {
        "difference": gain.mean,
        "low": low,
        "high": high,
        "p": gain.p_value,
        "verdict": verdict,
    }


def results(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Returns every reading, one number per seed, and each claim's comparison."""
    readings: dict[str, list[float]] = {}
    for name, origin, path in config.readings:
        readings[name] = [read(config, workdir, origin, seed, path) for seed in seeds(config)]
    claims = [
        {"finding": text, **compare(readings[better], readings[worse])}
        for better, worse, text in config.claims
    ]
    return {
        "readings": readings,
        "claims": corrected(claims) if config.correction == "holm" else claims,
    }


def markdown(config: ConfigDict, found: Mapping[str, Any]) -> str:
    """Returns a table of the readings and a line for each claim."""
    lines = [f"## {config.title}", "", config.description, ""]
    lines += ["| | mean | std | seeds |", "|---|---|---|---|"]
    for name, numbers in found["readings"].items():
        each = " ".join(f"{number:.2f}" for number in numbers)
        lines.append(
            f"| {name} | {np.mean(numbers):.2f} | {np.std(numbers, ddof=1):.2f} | {each} |"
        )
    lines.append("")
    for claim in found["claims"]:
        p = "" if claim["p"] is None else f"p = {claim['p']:.2g}, "
        p += f"{claim['p_holm']:.2g} by Holm's correction, " if "p_holm" in claim else ""
        lines.append(
            f"- {claim['finding']}: **{claim['verdict']}** ({claim['difference']:+.2f} points, 95 %"
            f" interval {claim['low']:+.2f} to {claim['high']:+.2f}, {p}{config.seeds} seeds)"
        )
    return "\n".join(lines) + "\n"
