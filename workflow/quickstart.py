"""Does the main job on the embedded digits: `run_quickstart.sh`.

`run_quickstart.sh --seeds=5` does it over several seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from cli import app, start, termination
from cli.json_files import read_json, reading, write_json

CONFIG = "configs/noisy_student/digits.py"

SUMMARY = {"teacher": {"top1": float}, "students": [{"top1": float}]}
"""Schema of what the comparison needs of a loop's `summary.json`."""


def main(workdir: str | None = None, seeds: int = 1) -> None:
    """Runs one seed, or several one after another."""
    directory = Path(workdir or app.ROOT / "runs" / "quickstart").expanduser().resolve()
    if seeds == 1:
        run(directory, 0)
        return
    summaries = []
    for seed in range(seeds):
        print(f"==== seed {seed} ({seed + 1} of {seeds})", flush=True)
        run(directory / f"seed_{seed}", seed)
        summaries.append(read_json(directory / f"seed_{seed}" / "summary.json", SUMMARY))
    with reading(f"a summary.json in {directory}"):
        results = compare(summaries)
    write_json(directory / "seeds.json", results)
    print(table(results))
    print(f"results: {directory / 'seeds.json'}")


def run(workdir: Path, seed: int) -> None:
    """Runs the loop on one seed, then predicts a real image file with the exported model."""
    _call(
        "run_noisy_student.sh",
        f"--config={CONFIG}",
        f"--config.seed={seed}",
        f"--workdir={workdir}",
    )
    image = example_image(workdir)
    print(f"== a prediction for {image}", flush=True)
    _call("run_predict.sh", f"--model={workdir / 'export'}", str(image))


def _call(script: str, *arguments: str) -> None:
    code = termination.call(start.script(script, *arguments))
    if code:
        sys.exit(code)


def example_image(workdir: Path) -> Path:
    """Writes the first test image as a file, named by its label.

    Returns:
      The file's path.
    """
    import tensorflow as tf

    from data import records

    manifest = records.read_manifest(workdir / "data" / "test", "labeled")
    feature = tf.train.Example.FromString(
        next(iter(records.read_shard(manifest.paths[0])))
    ).features.feature
    label = feature["image/class/label"].int64_list.value[0] - manifest.label_offset
    path = workdir / f"example_of_{manifest.label_names[label]}.png"
    path.write_bytes(feature["image/encoded"].bytes_list.value[0])
    return path


def compare(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Compares the final student with the teacher, per seed.

    Returns:
      Top-1 of teacher and students in percent, and the final student's gain in points.
    """
    teacher = [100 * s["teacher"]["top1"] for s in summaries]
    students = [[100 * row["top1"] for row in s["students"]] for s in summaries]
    gain = [final[-1] - first for first, final in zip(teacher, students)]
    return {
        "teacher": teacher,
        "students": students,
        "gain": gain,
        "mean_gain": float(np.mean(gain)),
        "min_gain": float(min(gain)),
    }


def table(results: dict[str, Any]) -> str:
    """Returns one line per seed, then mean and standard deviation over seeds."""
    columns = np.array(
        [[t, *s, g] for t, s, g in zip(results["teacher"], results["students"], results["gain"])]
    )
    names = ["teacher", *(f"student_{i}" for i in range(1, columns.shape[1] - 1)), "gain"]
    rows = [f"{'seed':<6}" + "".join(f"{name:>12}" for name in names)]
    rows += [
        f"{seed:<6}" + "".join(f"{value:>12.2f}" for value in line)
        for seed, line in enumerate(columns)
    ]
    for name, line in (("mean", columns.mean(0)), ("std", columns.std(0, ddof=1))):
        rows.append(f"{name:<6}" + "".join(f"{value:>12.2f}" for value in line))
    return "\n".join(rows)
