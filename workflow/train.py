"""Trains a classifier by any method: `run_train.sh`, and its shorter names for a recipe's stages.

A section of the recipe says which method, with which settings. `run_teacher.sh`, `run_student.sh`
and `run_finetune.sh` train the sections of these names. `run_train.sh` trains the section `train`
by default.
"""

from __future__ import annotations

import cli  # noqa: F401  (sets TensorFlow's log level, so it must come before TensorFlow)

# isort: split

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cli import work_dirs
from cli.errors import InputError
from cli.json_files import read_json
from data import records
from data.preprocessing import Preprocessing
from training import addons, estimates, model_dir, models, resolve, schedules
from training.initial import Initial
from training.method import IMAGES, PSEUDO_LABELED, TEACHER, Method, set_model
from training.run import Devices, Inputs, says_done, train
from training.settings import needing_weights
from weights import pretrained
from workflow import methods
from workflow.settings import check_section

BALANCE = "run_balance.sh"
MADE_BY = {
    **{"data": "run_prepare_data.sh", "pseudo_labeled": BALANCE, "selection": BALANCE},
    **{"teacher": model_dir.MADE_BY, "init": model_dir.MADE_BY},
}
"""Input -> the stage that makes it."""


def find(config: ConfigDict, section: str) -> Method:
    """Returns the method of a train section.

    Raises:
      InputError: the recipe has no such section, or the section has an impossible value.
    """
    known = sorted(
        name
        for name, value in config.items()
        if isinstance(value, ConfigDict) and "final_weights" in value
    )
    if section not in known:
        raise InputError(
            f"--section: no training {section!r} in the config; it has {', '.join(known)}"
        )
    check_section(section, config[section])
    return methods.find(config[section].method)


def check_training(config: ConfigDict, section: str, *, init: bool = False) -> None:
    """Raises InputError where a value of a train section is impossible.

    Checks what needs neither data nor the weights `init`.
    """
    method = find(config, section)
    values = config[section].to_dict()
    preprocessing_values = values.pop("preprocessing", {})
    of_small = any(
        {**config.preprocessing.to_dict(), **preprocessing_values}.get(key)
        for key in ("pad", "extra_cutout")
    )
    side = 32 if of_small else 224  # size of images that would do
    try:
        Preprocessing.from_dict(
            resolve.preprocessing(
                config.preprocessing.to_dict(),
                preprocessing_values,
                median_height=side,
                median_width=side,
            )
        )
        values = resolve.section(
            values, labeled_examples=1000, unlabeled=bool(method.unlabeled(values)), quiet=True
        )
        for network in method.networks(values):
            models.builder(dict(network.settings(values)["model"]))
        schedules.of_section(values, 1.0)
    except InputError as error:
        raise InputError(f"config.{section}: {error}") from error
    if config[section].batch_size:
        _require_whole_parts(section, values)
    _require_validation(section, values, bool(config.data.validation_size))
    _check(method, section, values, init)


def initial_of(config: ConfigDict, section: str) -> str | None:
    """Returns the weights that a training starts from without --init; None: random weights.

    Students follow `student_init`. A fine-tuning always needs --init.
    """
    if section.startswith("finetune") or (
        section.startswith("student") and student_init(config) != "pretrained"
    ):
        return None
    return config.get("init")


def student_init(config: ConfigDict) -> str:
    """Returns what the students of a recipe start from: pretrained, teacher or scratch."""
    return config.get("student_init") or ("pretrained" if config.get("init") else "scratch")


def open_init(method: Method, values: Mapping[str, Any], init: str | None) -> Initial | None:
    """Opens the weights that a train section starts from, for the network that is kept.

    Raises:
      InputError: they cannot be used.
    """
    return pretrained.find(init, _kept_network(method, values)) if init else None


def _kept_network(method: Method, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns `model` of the network that is kept; the batch size may still be open."""
    values = {**values, "batch_size": values["batch_size"] or 1}
    model: Mapping[str, Any] = method.networks(values)[0].settings(values)["model"]
    return model


def _check(method: Method, section: str, values: dict[str, Any], init: bool) -> str | None:
    """Returns the method's warning about the resolved section, or None. Raises InputError."""
    for name in [] if init else needing_weights(values):
        raise InputError(
            f"{section}.{name}={values[name]} needs --init: it is for a training that starts from"
            " weights"
        )
    try:
        for name in schedules.of_section(values, 1.0):
            addons.require((values[name] if name else values)["optimizer"]["name"])
        return method.check(values)
    except InputError as error:
        raise InputError(f"{section}.{error}") from error


def _require_whole_parts(section: str, values: Mapping[str, Any]) -> None:
    """Raises InputError where `accumulation` does not divide the resolved section's batch."""
    batch, parts = values["batch_size"], values.get("accumulation", 1)
    if batch % parts:
        raise InputError(
            f"{section}.batch_size={batch} does not divide by {section}.accumulation={parts}"
        )


def _require_validation(section: str, train: dict[str, Any], there: bool) -> None:
    """Raises InputError where a training lacks the validation split by which it chooses.

    `train` is the resolved section. It chooses by `final_weights=best` or `stop_after`. Then it
    needs evaluations, and a validation split must be `there`.
    """
    settings = {
        "final_weights=best": train["final_weights"] == "best",
        f"stop_after={train['stop_after']}": train["stop_after"],
    }
    for setting, given in settings.items():
        if given and not (train["evaluate_every"] and there):
            raise InputError(
                f"{section}.{setting} needs {section}.evaluate_every and a validation split"
                " (data.validation_size)"
            )


def resolve_training(
    config: ConfigDict, section: str, data: str, *, init: str | None = None, iteration: int = 0
) -> dict[str, Any]:
    """Resolves the config of one training: seed, preprocessing and section (`train`).

    It leaves nothing open.

    Args:
      config: the recipe.
      section: the name of its train section; `preprocessing` in it overrides the recipe's.
      data: a finished data directory.
      init: weights; their network and normalization replace the section's and the recipe's. See
        `weights.pretrained`.
      iteration: makes the trainings of one recipe differ in their seeds.

    Raises:
      InputError: no such training, or values that don't fit.
    """
    method = find(config, section)
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    begin = open_init(method, config[section].to_dict(), init)
    trained = begin.spec if begin else None
    keeps_head = begin is not None and begin.keeps_head(labeled.label_names)
    given = config.preprocessing.to_dict()
    if trained and keeps_head:  # what the recipe leaves open is as it was trained
        of_model = trained.preprocessing.to_dict()
        for key in ("image_size", "style", "pad", "crop_padding"):
            if key in given and given[key] is None:
                given[key] = of_model[key]
    values = config[section].to_dict()
    preprocessing_values = values.pop("preprocessing", {})
    preprocessing = resolve.preprocessing(given, preprocessing_values, **_sizes(data))
    values = resolve.section(
        values, labeled_examples=labeled.num_records, unlabeled=bool(method.unlabeled(values))
    )
    _require_validation(section, values, (Path(data) / "validation").is_dir())
    _require_whole_parts(section, values)
    _check(method, section, values, bool(init))
    if trained:
        # The weights need the normalization of their training: other numbers are another network.
        preprocessing.update({"mean": trained.preprocessing.mean, "std": trained.preprocessing.std})
        set_model(method.networks(values), values, trained.architecture)
    resolved = {
        "seed": 100 * config.seed + iteration,
        "preprocessing": preprocessing,
        "train": values,
    }
    if begin and begin.source:  # so that other weights of the same name are noticed
        resolved["init"] = {**begin.source, "head": "kept" if keeps_head else "new"}
    return resolved


def _sizes(data: str) -> dict[str, float]:
    """Returns the median size of the labeled images, in pixels, as `training.resolve` takes it."""
    names = ("median_height", "median_width")
    summary = read_json(Path(data) / "summary.json", dict.fromkeys(names, float))
    return {name: summary[name] for name in names}


def main(
    config: ConfigDict,
    workdir: str,
    data: str,
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
    replica_cores: int = 1,
) -> None:
    """Trains the section, or continues its training, or says that it is done."""
    devices = Devices(strategy, cpu_devices, tpu, profile_steps, replica_cores)
    given = {"pseudo_labeled": pseudo_labeled, "teacher": teacher, "selection": selection}
    method = find(config, section)
    init = init or initial_of(config, section)
    if dry_run:
        print(describe(config, section, Path(data), given, init))
        return
    _require_inputs(method, config[section], section, given, init)
    begin = open_init(method, config[section].to_dict(), init)
    inputs = {name: path for name, path in (("data", data), *given.items()) if path}
    if init and begin and not begin.source:
        inputs["init"] = init
    for name, path in inputs.items():
        work_dirs.require_finished(path, f"--{name}", MADE_BY[name])
    resolved = resolve_training(config, section, data, init=init, iteration=iteration)
    shared = strategy == "multi_worker"
    done = work_dirs.start(
        workdir, resolved, inputs, shared=shared, summary_schema={"steps": int, "parameters": int}
    )
    if done:
        work_dirs.say_done(workdir, says_done(workdir, done))
        return
    warning = resolve.shrinks(resolved["preprocessing"]["image_size"], **_sizes(data))
    if warning:
        print(warning, flush=True)
    opened = open_inputs(method, resolved, data, pseudo_labeled, teacher, init, selection)
    train(Path(workdir), resolved, method, spec_of(method, resolved, opened), opened, devices)


def _require_inputs(
    method: Method, values: ConfigDict, section: str, given: dict[str, str | None], init: str | None
) -> None:
    """Raises InputError where a needed directory is missing, or a given one is of no use.

    The method decides which directories it needs.
    """
    needed = method.unlabeled(values)
    if needed in given and not given[needed]:
        of = (
            "the directory of a trained model"
            if needed == TEACHER
            else f"the directory made by {MADE_BY[needed]}"
        )
        raise InputError(
            f"--{needed} is missing:"
            f" {values.method}{' that is online' if needed == TEACHER else ''} needs {of}"
        )
    online = f" with online={values.online}" if "online" in values else ""
    useful = {needed, *(["selection"] if needed in (IMAGES, TEACHER) else [])}
    for name, path in given.items():
        if path and name not in useful:
            raise InputError(
                f"--{name} has no effect on {section}, which trains by {values.method}{online}; "
                "leave it out"
            )
    if section.startswith("finetune") and not init:
        raise InputError(
            "--init is missing: fine-tuning starts from the directory of a trained model"
        )


def open_inputs(
    method: Method,
    resolved: dict[str, Any],
    data: str,
    pseudo_labeled: str | None = None,
    teacher: str | None = None,
    init: str | None = None,
    selection: str | None = None,
) -> Inputs:
    """Reads the manifests of a training's inputs. Raises InputError where their classes differ."""
    labeled = records.read_manifest(Path(data) / "labeled", "labeled")
    source = method.unlabeled(resolved["train"]) if resolved["train"]["unlabeled_ratio"] else ""
    unlabeled = None
    if source == PSEUDO_LABELED and pseudo_labeled:
        unlabeled = records.read_manifest(pseudo_labeled, "pseudo_labeled")
        records.require_same_classes(
            unlabeled.label_names, f"--pseudo_labeled={pseudo_labeled}", labeled.label_names, data
        )
    elif source and selection:
        # Its images, with their copies. The labels of the set are not read.
        unlabeled = records.read_manifest(selection, "pseudo_labeled")
    elif source:
        unlabeled = records.read_manifest(Path(data) / "unlabeled", "unlabeled")
    begin = open_init(method, resolved["train"], init)
    if teacher:
        records.require_same_classes(
            model_dir.read_spec(teacher).label_names,
            f"--teacher={teacher}",
            labeled.label_names,
            data,
        )
    return Inputs(Path(data), labeled, unlabeled, begin, teacher)


def spec_of(method: Method, resolved: dict[str, Any], inputs: Inputs) -> model_dir.ModelSpec:
    """Returns the spec of the model that a training keeps."""
    # Evaluation must tell a model that was fine-tuned at a larger resolution from one that was not.
    metadata: dict[str, Any] = {}
    if inputs.init and inputs.init.keeps_head(inputs.labeled.label_names):
        metadata["init_image_size"] = inputs.init.spec.preprocessing.image_size
    if inputs.init and inputs.init.source:
        metadata["init"] = dict(inputs.init.source)
    kept = method.networks(resolved["train"])[0].settings(resolved["train"])
    preprocessing = Preprocessing.from_dict(resolved["preprocessing"])
    return model_dir.ModelSpec(
        dict(kept["model"]), preprocessing, inputs.labeled.label_names, metadata
    )


def planned(
    config: ConfigDict, section: str, labeled_examples: int
) -> tuple[Method, dict[str, Any], dict[str, Any]]:
    """Returns method and values of a train section for a plan, before its data are there.

    Args:
      config: the recipe.
      section: name of the section.
      labeled_examples: number of labeled images.

    Returns:
      (the method, the section without its preprocessing, the same with nothing left open).

    Raises:
      InputError: no such training, or impossible values.
    """
    method = find(config, section)
    given = {
        key: value for key, value in config[section].to_dict().items() if key != "preprocessing"
    }
    values = resolve.section(
        given,
        labeled_examples=labeled_examples,
        unlabeled=bool(method.unlabeled(given)),
        quiet=True,
    )
    return method, given, values


def describe(
    config: ConfigDict,
    section: str,
    data: Path,
    given: dict[str, str | None],
    init: str | None = None,
) -> str:
    """Describes what a training on prepared data would do.

    The text has each network in numbers, and what is missing.
    """
    init = init or initial_of(config, section)
    counts = estimates.images(config, data)
    method, given_values, values = planned(config, section, counts["labeled"])
    _require_whole_parts(section, values)
    length = resolve.length(given_values, counts["labeled"], values["batch_size"])
    warning = _check(method, section, values, bool(init))
    lines = [
        f"{counts['labeled']:,} labeled and {counts['unlabeled']:,} unlabeled images,"
        f" {counts['classes']:,} classes"
    ]
    networks, weights = method.networks(values), ""
    if init:
        model, weights = pretrained.preview(init, _kept_network(method, values))
        set_model(networks, values, model)
    lines += estimates.trainings(
        section, networks, values, counts, estimates.image_size(config, section, counts)
    )
    lines += [f"  {length}"] if length else []
    lines += [f"  starts from {weights}"] if init else []
    lines += ["", f"warning: {warning}"] if warning else []
    absent = _unprepared(config, data)
    needed = method.unlabeled(values)
    if needed in given and not given[needed]:
        absent.append(f"--{needed} is not given")
    return "\n".join([*lines, "", f"missing: {'; '.join(absent) if absent else 'nothing'}"])


def _unprepared(config: ConfigDict, data: Path) -> list[str]:
    """Returns the command that makes the missing prepared data; empty where they are there."""
    if (data / "summary.json").exists():
        return []
    absent = estimates.missing(config, {}, data)
    places = "".join(
        f" --{role}=LOCATION"
        for role in ("labeled", "unlabeled")
        if f"--{role} is not given" in absent
    )
    made_by = f"./{MADE_BY['data']} with the same --config,{places} --workdir={data}"
    return [f"--data: {data} is not prepared; make it by {made_by}"]
