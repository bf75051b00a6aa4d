"""Measures published weights on ImageNet's own sets, beside the published numbers.

    ./run_tool.sh reproduce                                # lists checkpoints and their numbers
    ./run_tool.sh reproduce --name=noisy_student:b7 --imagenet=DIR --workdir=W \
        [--data_real=real.json] [--data_a=DIR] [--data_c=DIR] [--data_p=DIR]

Downloads the weights by name and reads ImageNet's validation images (TFRecords or the official
tar files, docs/data.md). Runs the suites that it has data for. Leaves in W:

    data/          the validation images as the split `test`
    NAME_NETWORK/  the weights as a model directory
    evaluation/    what run_evaluate.sh leaves
    comparison.json

The exit code is 1 where a published number is outside the 95 % interval of the measured one.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level before the first TensorFlow import)

# isort: split

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cli.errors import InputError
from cli.json_files import read_json, write_json
from evaluation.numbers import find
from evaluation.statistics import wilson_interval
from weights import published
from weights.published import Published

NAMES = ("noisy_student", "advprop", "randaugment")
"""Releases with checkpoints to compare; the second paper's authors released none."""

SPLIT = "test"

FIGURES: dict[tuple[str, str], dict[str, float]] = {
    ("noisy_student", "l2"): {
        "top5": 98.7,
        "a.top1": 83.7,
        "a.top5": 95.2,
        "real.precision": 90.55,
    },
    ("noisy_student", "l2_475"): {
        "c.top1@224": 76.5,
        "c.mce@224": 30.0,
        "c.top1@299": 77.8,
        "c.mce@299": 28.3,
        "p.top1@224": 85.2,
        "p.mfr@224": 14.2,
        "p.top1@299": 86.4,
        "p.mfr@299": 12.2,
    },
}
"""(name, network) -> published numbers besides top-1, in percent; @ is the side of the images.

Sources: Xie et al. 2020, Tables 2 to 5 (for -C and -P, their footnote 3 takes the network before
its fine-tuning); Pham et al. 2021, Table 4 (ReaL).
"""


class Measured(NamedTuple):
    """A number of a model, in percent, with its 95 % interval."""

    value: float
    low: float
    high: float


def main(
    config: ConfigDict,
    name: str | None = None,
    imagenet: str | None = None,
    workdir: str | None = None,
    data_real: str | None = None,
    data_a: str | None = None,
    data_c: str | None = None,
    data_p: str | None = None,
) -> int:
    """Prints the table of checkpoints, or measures one; returns 1 where a number is not reproduced.

    Raises:
      InputError: no such checkpoint, no network, or unusable images.
    """
    places = {"real": data_real, "a": data_a, "c": data_c, "p": data_p}
    if not name:
        if imagenet or workdir or any(places.values()):
            raise InputError(
                "--name is missing; name a checkpoint, such as --name=noisy_student:b0"
            )
        print(listing())
        return 0
    row = checkpoint(name)
    if not (imagenet and workdir):
        raise InputError(
            "--imagenet and --workdir are missing; give the validation images and a directory for "
            "the results"
        )
    directory = Path(workdir)
    measure(
        row, config, imagenet, directory, {suite: path for suite, path in places.items() if path}
    )
    return compare(
        row, directory, {suite: path for suite, path in (("c", data_c), ("p", data_p)) if path}
    )


def checkpoint(text: str) -> Published:
    """Returns the row that --name means. Raises InputError."""
    row = published.find(text)
    if row is None:
        raise published.unknown(text, "--name")
    if row.name not in NAMES:
        raise InputError(
            f"--name={text}: the papers do not state its numbers; they state those of "
            f"{', '.join(NAMES)}"
        )
    return row


def figures(row: Published) -> dict[str, float]:
    """Returns a checkpoint's published numbers by key, in percent."""
    return {"top1": row.top1, **FIGURES.get((row.name, row.network), {})}


def rows() -> list[Published]:
    """Returns the released checkpoints."""
    return [row for row in published.TABLE if row.name in NAMES]


def listing() -> str:
    """Returns a line per released checkpoint: what is published, and the command to compare it."""
    lines = []
    for row in rows():
        published = ", ".join(f"{key} {value:g}" for key, value in figures(row).items())
        command = (
            f"./run_tool.sh reproduce --name={row.name}:{row.network} --imagenet=DIR --workdir=W"
        )
        lines.append(f"{row.name}:{row.network}\n    published: {published}\n    {command}")
    return "\n".join([*lines, "Meta Pseudo Labels: no checkpoint was released"])


def measure(
    row: Published, config: ConfigDict, imagenet: str, directory: Path, places: Mapping[str, str]
) -> None:
    """Makes the model and the validation split, and runs the suites; skips each part that is done.

    Args:
      row: the checkpoint.
      config: a recipe of `evaluate`.
      imagenet: directory of the validation images.
      directory: directory that everything is written to.
      places: suite (`real`, `a`, `c` or `p`) -> where its data are.

    Raises:
      InputError: see `main`.
    """
    from evaluation import evaluate, imagenet_validation
    from weights import import_weights

    source = published.locate(row)
    data = imagenet_validation.prepare(imagenet, directory / "data")
    model = directory / f"{row.name}_{row.network}"
    labels = str(data / imagenet_validation.CLASSES)
    import_weights.main(
        str(source), row.network, str(model), labels=labels, preprocessing=row.preprocessing
    )
    suites = ",".join(["clean", *places])
    flags: dict[str, Any] = {f"data_{suite}": path for suite, path in places.items()}
    workdir = str(directory / "evaluation")
    evaluate.main(config, workdir, str(model), str(data), SPLIT, suites, **flags)


def compare(row: Published, directory: Path, sets: Mapping[str, str]) -> int:
    """Prints our numbers beside the published ones, and writes `comparison.json`.

    Args:
      row: the checkpoint.
      directory: directory of the run.
      sets: suite (`c` or `p`) -> its directory, which tells the side of its images.

    Returns:
      1 where a published number is outside the interval of ours, otherwise 0.
    """
    model = f"{row.name}_{row.network}"
    models = read_json(directory / "evaluation" / "summary.json", {"models": {model: dict}})[
        "models"
    ]
    sides = {suite: side(suite, Path(path)) for suite, path in sets.items()}
    ours = dict(numbers(models[model], sides))
    lines, outside, found_numbers = [], 0, {}
    for key, figure in figures(row).items():
        if key not in ours:
            lines.append(
                f"{key:<16}{'–':>8}{'':>18}{figure:>11.2f}  not measured: its data are not given"
            )
            continue
        value, low, high = ours[key]
        inside = low - 0.05 <= figure <= high + 0.05  # it is rounded to a tenth
        outside += not inside
        found_numbers[key] = {
            "ours": value,
            "interval": [low, high],
            "published": figure,
            "inside": inside,
        }
        verdict = "reproduced" if inside else "NOT REPRODUCED"
        lines.append(
            f"{key:<16}{value:>8.2f}{f'{low:.2f} to {high:.2f}':>18}{figure:>11.2f}  {verdict}"
        )
    more = sorted(set(ours) - set(figures(row)))
    lines += [
        f"{key:<16}{ours[key].value:>8.2f}"
        f"{f'{ours[key].low:.2f} to {ours[key].high:.2f}':>18}{'–':>11}"
        for key in more
    ]
    write_json(
        directory / "comparison.json",
        {"weights": f"{row.name}:{row.network}", "numbers": found_numbers},
    )
    print(
        f"{row.name}:{row.network}\n{'number':<16}{'ours':>8}{'95 % interval':>18}{'published':>11}"
    )
    print("\n".join(lines))
    return int(outside > 0)


def numbers(row: Mapping[str, Any], sides: Mapping[str, int]) -> Iterator[tuple[str, Measured]]:
    """Yields the numbers of a model's row of `summary.json`, in percent.

    Shares have Wilson's interval. The intervals of mCE and mFR are scaled from the bootstrap of the
    mean error and of the mean flip probability. The frames of a sequence count as one image.
    """
    for key, count in (
        ("top1", "examples"),
        ("top5", "examples"),
        ("a.top1", "a.examples"),
        ("a.top5", "a.examples"),
    ):
        if find(row, key) is not None:
            yield key, _share(find(row, key), find(row, count))
    if "real" in row:
        yield "real.precision", _share(row["real"]["precision"], row["real"]["examples"])
    for suite, mean, number in (("c", "mean_error", "mce"), ("p", "mean_flip", "mfr")):
        if suite not in row or row[suite].get(f"{mean}_interval") is None:
            continue
        suite_row, end = row[suite], f"@{sides[suite]}"
        low, high = suite_row[f"{mean}_interval"]
        if suite == "c":
            yield (
                f"c.top1{end}",
                Measured(100 * (1 - suite_row[mean]), 100 * (1 - high), 100 * (1 - low)),
            )
        else:
            yield f"p.top1{end}", _share(suite_row["top1"], suite_row["sequences"])
        if suite_row.get(number) is not None and suite_row[mean]:
            yield (
                f"{suite}.{number}{end}",
                Measured(
                    *(
                        suite_row[number] * value / suite_row[mean]
                        for value in (suite_row[mean], low, high)
                    )
                ),
            )


def _share(value: float, count: int) -> Measured:
    low, high = wilson_interval(round(value * count), count)
    return Measured(100 * value, 100 * low, 100 * high)


def side(suite: str, path: Path) -> int:
    """Returns the side of ImageNet-C's or -P's images in pixels, from the first image.

    Raises InputError.
    """
    import tensorflow as tf

    from evaluation.examples import read_video

    pattern = {"c": "*.JPEG", "p": "*.mp4"}[suite]
    first = next(path.rglob(pattern), None)
    if first is None:
        raise InputError(f"--data_{suite}: {path} holds no {pattern} files")
    if suite == "p":
        return int(read_video(first)[0].shape[0])
    return int(tf.io.extract_jpeg_shape(first.read_bytes())[0])
