"""A study: one recipe under several conditions and seeds, compared pairwise: `run_experiment.sh study`.

Each condition ("run") and seed is a call of the recipe's own script in its own directory, or of several stages' scripts, one after
another; a study that was interrupted goes on with the run that was not finished. What the runs have in common (the data, the teacher) is
made once a seed: the first run makes it, the others get a link, unless their own flags change it; and the stage itself refuses a link
where their configs differ in what it depends on. `configs/studies/base.py` says what a study's config holds.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cli import recipes, start, termination
from cli import workdir as workdirs
from cli.errors import InputError
from cli.files import atomic_path
from cli.json_files import read_json, reading, write_json
from evaluation.statistics import gain_over_seeds

PLANNED = ("run_noisy_student.sh", "run_meta_pseudo_labels.sh", "run_train.sh")
"""The scripts that have a dry run."""


class Command(NamedTuple):
    """A script's call (its name, then flags), and the directory that it finishes."""

    words: list[str]
    directory: Path


def main(config: ConfigDict, workdir: str, jobs: int = 1, dry_run: bool = False) -> None:
    """Runs what is not done, then writes `results.json`, `results.md` and `results.png` into `workdir`."""
    check(config)
    directory = Path(workdir).expanduser().resolve()
    if dry_run:
        print(plan(config, directory))
        return
    done = workdirs.start(directory, config.to_dict())
    if not done:
        run_all(config, directory, jobs)
        done = results(config, directory)
        write_json(directory / "results.json", done)
        with atomic_path(directory / "results.md") as temporary:
            temporary.write_text(markdown(config, done), encoding="utf-8")
        figure(config, done, directory / "results.png")
        workdirs.finish(directory, done)
    text = workdirs.shown(directory, done, functools.partial(markdown, config))
    workdirs.say_done(directory, f"{text}\nresults: {directory / 'results.json'}\nfigure: {directory / 'results.png'}")


def check(config: ConfigDict) -> None:
    """Raises InputError where the study cannot be run as it stands."""
    if config.seeds < 2:
        raise InputError(f"config.seeds is {config.seeds}; a comparison needs at least 2")
    runs, readings = [row[0] for row in config.runs], [name for name, _, _ in config.readings]
    for name, _, *method in config.runs:
        if method and method[0] not in config.methods:
            raise InputError(f"config.runs: {name} is of method {method[0]!r}; there are {', '.join(config.methods)}")
    for name, origin, _ in config.readings:
        if origin not in runs:
            raise InputError(f"config.readings: {name} is read from run {origin!r}; there are {', '.join(runs)}")
    for better, worse, _ in config.claims:
        for name in (better, worse):
            if name not in readings:
                raise InputError(f"config.claims: no reading {name!r}; there are {', '.join(readings)}")


def seeds(config: ConfigDict) -> range:
    """The study's seeds."""
    return range(config.first_seed, config.first_seed + config.seeds)


def run_directory(workdir: Path, name: str, seed: int) -> Path:
    """Where one run lives."""
    return workdir / name / f"seed_{seed}"


def commands(config: ConfigDict, workdir: Path, name: str, seed: int) -> list[Command]:
    """What one run is made of: its method's stages, or the study's script."""
    flags, *method = next(row[1:] for row in config.runs if row[0] == name)
    directories = {other: run_directory(workdir, other, seed) for other, *_ in config.runs}
    stages = config.methods[method[0]] if method else [("", config.script, (f"--config.iterations={config.iterations}",))]
    of_run = [_of_recipe(flag, config.recipe) for flag in flags]
    made = []
    for part, script, own in stages:
        directory = directories[name] / part
        own = [flag.format(run=directories[name], **directories) for flag in own]
        common = [f"--config={config.recipe}", *config.flags, *own, *of_run, f"--config.seed={seed}", f"--workdir={directory}"]
        made.append(Command([script, *common], directory))
    return made


def python(words: Sequence[str]) -> list[str]:
    """Returns the words of a script's call as a call of Python."""
    return start.script(Path(words[0]).name, *words[1:])


def _of_recipe(flag: str, recipe: str) -> str:
    """A flag of a first iteration's own section (`pseudo_label_1`) as one of the general section where the recipe has none of its own."""
    own = re.fullmatch(r"--config\.(\w+)_1\.(.*)", flag)
    return f"--config.{own[1]}.{own[2]}" if own and f"{own[1]}_1" not in _keys(recipe) else flag


@functools.lru_cache
def _keys(recipe: str) -> frozenset[str]:
    return frozenset(recipes.load(recipe, {}))


def run_all(config: ConfigDict, workdir: Path, jobs: int) -> None:
    """Every run that is not finished: the seeds `jobs` at a time, the runs of a seed in their order."""
    todo = [(row[0], seed) for seed in seeds(config) for row in config.runs if not finished(config, workdir, row[0], seed)]
    total, began = len(config.runs) * config.seeds, time.monotonic()
    print(f"{total - len(todo)} of {total} runs are done", flush=True)
    ended: list[str] = []
    stop = threading.Event()

    def run_seed(seed: int) -> None:
        for name in [name for name, of in todo if of == seed]:
            if stop.is_set():
                return
            try:
                run(config, workdir, name, seed, max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else 0)
            except BaseException:
                stop.set()  # the others end with the run that they are at
                raise
            ended.append(name)
            left = (time.monotonic() - began) / len(ended) * (len(todo) - len(ended)) / 60
            print(f"{name}, seed {seed}: done; {total - len(todo) + len(ended)} of {total}, {left:.0f} min left", flush=True)

    def leave() -> None:
        stop.set()
        termination.terminate_running()  # each run's thread then leaves with its exit code

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool, termination.on_sigterm(leave):
        futures = [pool.submit(run_seed, seed) for seed in seeds(config)]
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    for future in futures:
        future.result()


def summary_path(config: ConfigDict, workdir: Path, name: str, seed: int) -> Path:
    """The summary of a run: that of its last stage."""
    return commands(config, workdir, name, seed)[-1].directory / "summary.json"


def finished(config: ConfigDict, workdir: Path, name: str, seed: int) -> bool:
    """Whether a run has its summary."""
    return summary_path(config, workdir, name, seed).exists()


def linked(config: ConfigDict, name: str) -> list[str]:
    """The shared parts that run `name` takes from the first run: all that its own flags leave as they are."""
    if name == config.runs[0][0]:
        return []
    own = next(row[1] for row in config.runs if row[0] == name)
    return [part for part in config.shared if not any(flag.startswith(f"--config.{part}.") for flag in own)]


def plan(config: ConfigDict, workdir: Path) -> str:
    """What the study comes to, a line a run: trainings, steps and images over all seeds, without what is linked.

    Of a run of several stages, those count whose script has a dry run: a method's own, not a teacher's or a fine-tuning.

    Raises:
      InputError: the recipe's own dry run has failed.
    """
    lines, sums = [f"{'run':<24}{'trainings':>10}{'steps':>10}{'images':>14}"], np.zeros(3, np.int64)
    for name, *_ in config.runs:
        trainings = []
        for words, _ in commands(config, workdir, name, config.first_seed):
            if words[0] not in PLANNED:
                continue
            command = ["./" + words[0], *words[1:], "--dry_run"]
            said = subprocess.run(python(command), capture_output=True, text=True, errors="replace", check=False)
            if said.returncode:
                raise InputError(f"{' '.join(command)} fails: {said.stderr.strip().splitlines()[-1]}")
            found = re.findall(r"^(\S+): .* parameters.*\n +([\d,]+) steps of ([\d,]+) \+ ([\d,]+) images", said.stdout, re.MULTILINE)
            trainings += [[int(word.replace(",", "")) for word in words] for stage, *words in found if stage not in linked(config, name)]
        rows = np.array([[1, steps, steps * (first + more)] for steps, first, more in trainings], np.int64).reshape(-1, 3)
        counts = rows.sum(axis=0) * config.seeds
        lines.append(f"{name:<24}" + "{:>10,}{:>10,}{:>14,}".format(*counts))
        sums += counts
    return "\n".join([*lines, f"{f'{config.seeds} seeds, all runs':<24}" + "{:>10,}{:>10,}{:>14,}".format(*sums)])


def run(config: ConfigDict, workdir: Path, name: str, seed: int, threads: int = 0) -> None:
    """One run of the recipe, on so many threads; 0 leaves that to TensorFlow. Leaves with the script's exit code where it fails."""
    directory = run_directory(workdir, name, seed)
    directory.mkdir(parents=True, exist_ok=True)
    for part in linked(config, name):
        if not (directory / part).exists():
            (directory / part).unlink(missing_ok=True)  # a link whose target is gone
            (directory / part).symlink_to(os.path.relpath(run_directory(workdir, config.runs[0][0], seed) / part, directory))
    share = {f"TF_NUM_{kind}OP_THREADS": str(threads) for kind in ("INTER", "INTRA")} if threads else {}
    for command in commands(config, workdir, name, seed):
        with open(directory.parent / f"seed_{seed}.log", "a", encoding="utf-8") as log:
            code = termination.call(python(command.words), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **share})
        if code:
            print(f"./{' '.join(command.words)} failed with exit code {code}; see {log.name}", file=sys.stderr)
            sys.exit(code)


def value(summary: Any, path: str) -> float:
    """The number at a dotted path of a run's summary, in percent: "students.-1.top1"."""
    for key in path.split("."):
        summary = summary[int(key)] if isinstance(summary, list) else summary[key]
    return 100.0 * float(summary)


def compare(better: Sequence[float], worse: Sequence[float]) -> dict[str, Any]:
    """Paired comparison over seeds.

    Args:
      better: what is claimed to be the higher one, a number a seed, in percent.
      worse: the other, for the same seeds.

    Returns:
      `difference` (mean of better - worse, points), `low` and `high` (its 95 % interval, Student's t), `p` (paired t-test; None where all
      differ by the same), and `verdict`: "holds" or "opposite" where the interval leaves out 0, else "not decided".
    """
    gain = gain_over_seeds(worse, better)
    assert gain.interval  # `check` wants two seeds
    low, high = gain.interval
    verdict = "holds" if low > 0 else "opposite" if high < 0 else "not decided"
    return {"difference": gain.mean, "low": low, "high": high, "p": gain.p_value, "verdict": verdict}


def results(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Every reading, a number a seed, and each claim's comparison."""
    readings: dict[str, list[float]] = {}
    for name, origin, path in config.readings:
        readings[name] = []
        for seed in seeds(config):
            file = summary_path(config, workdir, origin, seed)
            with reading(file):
                readings[name].append(value(read_json(file, dict), path))
    claims = [{"finding": text, **compare(readings[better], readings[worse])} for better, worse, text in config.claims]
    return {"readings": readings, "claims": claims}


def markdown(config: ConfigDict, found: Mapping[str, Any]) -> str:
    """A table of the readings and a line for each claim."""
    lines = [f"## {config.title}", "", config.description, ""]
    lines += ["| | mean | std | seeds |", "|---|---|---|---|"]
    for name, numbers in found["readings"].items():
        each = " ".join(f"{number:.2f}" for number in numbers)
        lines.append(f"| {name} | {np.mean(numbers):.2f} | {np.std(numbers, ddof=1):.2f} | {each} |")
    lines.append("")
    for claim in found["claims"]:
        p = "" if claim["p"] is None else f"p = {claim['p']:.2g}, "
        lines.append(
            f"- {claim['finding']}: **{claim['verdict']}** ({claim['difference']:+.2f} points, 95 % interval {claim['low']:+.2f} to "
            f"{claim['high']:+.2f}, {p}{config.seeds} seeds)"
        )
    return "\n".join(lines) + "\n"


def figure(config: ConfigDict, found: Mapping[str, Any], path: Path) -> None:
    """A bar a reading, with its seeds as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(found["readings"])
    fig, axes = plt.subplots(figsize=(1.5 + 1.1 * len(names), 3.6), layout="constrained")
    for x, name in enumerate(names):
        numbers = found["readings"][name]
        axes.bar(x, np.mean(numbers), yerr=np.std(numbers, ddof=1), color="0.8", capsize=4)
        axes.plot(np.linspace(x - 0.2, x + 0.2, len(numbers)), numbers, "o", color="C0", markersize=4)
    low = min(min(numbers) for numbers in found["readings"].values())
    high = max(max(*numbers, np.mean(numbers) + np.std(numbers, ddof=1)) for numbers in found["readings"].values())
    axes.set(title=config.title, ylabel="top-1 %", ylim=(max(0.0, low - 3), min(100.0, high + 1)))
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png", dpi=120)
    plt.close(fig)
