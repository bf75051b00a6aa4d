"""Stage: the teacher labels the unlabeled images (Noisy Student, algorithm 1, step 2).

    ./run_pseudo_label.sh --config=… --workdir=… --data=… --teacher=…

The teacher is not noised: averaged weights, inference mode, evaluation preprocessing. Settings can
change this:

- `views`, beyond the paper: the answer is the mean over noised copies of the image, an ensemble
  over the input noise.
- `views=1` with `model_noise`: the paper's noised teacher (Table 6).
- `calibrate`, beyond the paper too: a temperature, fitted on the answers to the validation split,
  tempers the answers (`calibration`).

Every image of `DATA/unlabeled` gets one prediction record: its key and the distribution over the
classes. The record is in a shard of the same number as the image's. With `--selection=BALANCED` the
images are those of a balanced set, each once, however many copies the set has of it (`relabel`):

    WORKDIR/predictions-%05d-of-%05d   manifest.json   summary.json (last)

The shard is the unit of work of a Beam pipeline (`shard_jobs`): Beam's own options choose the
runner. `label_shards` has the job.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cli import work_dirs
from cli.errors import InputError
from cli.json_files import read_json, write_json
from data.records import (
    Manifest,
    read_manifest,
    require_same_classes,
    write_manifest,
)
from training import gpus, model_dir
from workflow import shard_jobs
from workflow.label_shards import CONFIDENCE_BINS, LabelShards, calibrated, note
from workflow.settings import check_section


def summarize(results: Sequence[dict[str, Any]], label_names: Sequence[str]) -> dict[str, Any]:
    """Returns the stage's summary of its shards' results; seconds are summed over the workers."""
    images = sum(result["images"] for result in results)
    seconds = sum(result["seconds"] for result in results)
    return {
        "images": images,
        "label_names": list(label_names),
        "predicted_per_class": np.sum([result["predicted"] for result in results], axis=0).tolist(),
        "mean_confidence": sum(result["confidence_sum"] for result in results) / max(images, 1),
        "confidence_histogram": {
            "edges": np.linspace(0.0, 1.0, CONFIDENCE_BINS + 1).round(6).tolist(),
            "images": np.sum([result["histogram"] for result in results], axis=0).tolist(),
        },
        "seconds": seconds,
        "images_per_second": images / max(seconds, 1e-9),
    }


def check_pseudo_label(section: str, settings: ConfigDict) -> None:
    """Raises InputError where a value of `config.SECTION` is impossible."""
    check_section(section, settings)
    if settings.views > settings.batch_size:
        raise InputError(
            f"config.{section}.views is {settings.views}; it can be 0 (off) to batch_size,"
            f" {settings.batch_size}"
        )
    if settings.optimize and settings.model_noise:
        raise InputError(
            f"config.{section}: optimize makes a graph of the teacher without noise; turn off "
            "optimize or model_noise"
        )


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
    teacher: str,
    section: str = "pseudo_label",
    beam_options: Sequence[str] = (),
    selection: str | None = None,
    strategy: str = "auto",
    cpu_devices: int = 1,
    tpu: str = "",
) -> None:
    """Runs the stage, see the module. The devices change no prediction. Raises InputError."""
    if section not in config:
        raise InputError(
            f"--section: no section {section!r} in the config; it has {', '.join(sorted(config))}"
        )
    settings = config[section]
    check_pseudo_label(section, settings)
    # Absolute, since a worker may have another current folder.
    workdir, data, teacher = (
        str(Path(path).expanduser().resolve()) for path in (workdir, data, teacher)
    )
    work_dirs.require_finished(data, "data", "run_prepare_data.sh")
    if settings.calibrate and not (Path(data) / "validation").is_dir():
        raise InputError(
            f"config.{section}.calibrate needs a validation split, which {data} lacks; set"
            " data.validation_size"
        )
    work_dirs.require_finished(teacher, "teacher", model_dir.MADE_BY)
    inputs = {"data": data, "teacher": teacher}
    spec = model_dir.read_spec(teacher)
    if selection:
        selection = inputs["selection"] = str(Path(selection).expanduser().resolve())
        work_dirs.require_finished(selection, "--selection", "run_balance.sh")
        images = read_manifest(selection, "pseudo_labeled")
        require_same_classes(
            spec.label_names, f"teacher {teacher}", images.label_names, f"--selection={selection}"
        )
    else:
        images = read_manifest(Path(data) / "unlabeled", "unlabeled")
    validation = read_manifest(Path(data) / "validation", "labeled") if settings.calibrate else None
    if validation:
        require_same_classes(
            spec.label_names,
            f"teacher {teacher}",
            validation.label_names,
            f"config.{section}.calibrate: {validation.directory}",
        )
    directory, progress = Path(workdir), Path(workdir) / "progress"
    noisy = settings.views or settings.model_noise
    done = f"{workdir}: pseudo-labels are finished already"
    resolved = {
        "stage": "pseudo_label",
        "pseudo_label": settings.to_dict(),
        **({"seed": config.seed} if noisy else {}),
    }
    if work_dirs.start(directory, resolved, inputs) is not None:
        shard_jobs.forget(progress)
        work_dirs.say_done(directory, done)
        return

    what = "records of the selection" if selection else "images"
    logging.info(
        "labeling %d %s in %d shards with %s", images.num_records, what, len(images.files), teacher
    )
    job = LabelShards(
        images,
        str(teacher),
        directory,
        settings.batch_size,
        settings.top_k,
        views=settings.views,
        model_noise=settings.model_noise,
        seed=config.seed,
        precision=settings.precision,
        optimize=settings.optimize,
        devices=(strategy, cpu_devices, tpu),
    )
    if validation:
        # All shards get the same temperature, whichever machine goes on with them.
        kept = progress / "temperature.json"
        if not kept.exists():
            write_json(kept, calibrated(job, validation).temperature)
        job.temperature = read_json(kept, float)
    several = strategy == "tpu" or (strategy != "one_device" and max(gpus.count(), cpu_devices) > 1)
    # With two shards at once, one keeps the devices busy while the other begins or ends.
    results = shard_jobs.run(
        job,
        len(images.files),
        progress,
        beam_options,
        note(spec.num_classes),
        at_once=2 if several else 1,
    )

    predictions = Manifest(
        directory=directory,
        name="predictions",
        files=tuple(
            Path(path).name for shard in range(len(results)) for path in job.outputs(shard)
        ),
        records=tuple(result["images"] for result in results),
        label_names=spec.label_names,
        label_offset=0,
        kind="predictions",
        extra={
            "top_k": settings.top_k,
            "images": images.digest,
            "teacher": work_dirs.fingerprint(teacher),
        },
        digests=tuple(result["sha256"] for result in results),
    )
    if not selection and predictions.records != images.records:
        raise AssertionError(
            f"{predictions.num_records} predictions for {images.num_records} images"
        )
    write_manifest(predictions)
    summary = {**summarize(results, spec.label_names), "temperature": job.temperature}
    work_dirs.finish(directory, summary, done)
    shard_jobs.forget(progress)
    logging.info(
        "%d images labeled, mean confidence %.3f, %.0f images/s",
        summary["images"],
        summary["mean_confidence"],
        summary["images_per_second"],
    )
