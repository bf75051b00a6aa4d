"""Labels, evaluation and predictions are the same bytes on one, two and four devices.

Run as a program, `python -m tests.workflow.test_all_devices DIR` makes them on two and four logical
CPU devices. TensorFlow splits the CPU only before its first use.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cli import recipes
from cli.json_files import write_json
from data.preprocessing import Preprocessing
from data.protos import make_example
from data.records import read_manifest, write_split
from evaluation import suites
from evaluation.classifiers import open_candidate
from evaluation.examples import from_records
from evaluation.settings import Settings
from serving import export, predict
from tests import networks
from tests.training_runs import ROOT
from tests.workflow.test_pseudo_label import LABEL_NAMES, config
from training import model_dir, strategy
from training.model_dir import ModelSpec
from workflow import pseudo_label

COUNT, SHARDS, SIZE = 61, 5, 8
EVALUATION = [
    "--config=configs/evaluation/default.py",
    "--config.evaluate.batch_size=7",
    "--config.evaluate.pgd_iterations=2",
]


def prepare(root: Path) -> None:
    """Writes images, a model with its own statistics, and its export."""
    rng = np.random.Generator(np.random.PCG64([0]))
    pixels = rng.integers(0, 256, [COUNT, SIZE, SIZE, 3], dtype=np.uint8)
    encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    examples = [make_example(image, f"{i}.png") for i, image in enumerate(encoded)]
    write_split(root / "data" / "unlabeled", "unlabeled", examples, SHARDS, COUNT, kind="unlabeled")
    examples = [make_example(image, f"{i}.png", label=i % 3) for i, image in enumerate(encoded)]
    write_split(
        root / "data" / "test", "test", examples, 2, COUNT, kind="labeled", label_names=LABEL_NAMES
    )
    for name in ("data", "teacher"):
        write_json(root / name / "summary.json", {})
    spec = ModelSpec(
        {"name": networks.NAME}, Preprocessing(image_size=SIZE, style="small"), LABEL_NAMES
    )
    model = spec.build()
    model.set_weights(
        [weight + rng.uniform(0, 0.1, weight.shape) for weight in model.get_weights()]
    )
    model_dir.save(root / "teacher" / "model", model, spec)
    export.main(str(root / "serving"), str(root / "teacher"))
    (root / "images").mkdir()
    for i, image in enumerate(encoded):
        (root / "images" / f"{i:02d}.png").write_bytes(image)


def make(root: Path, number: int) -> dict[str, bytes]:
    """Labels, evaluates and predicts on `number` devices; returns what must not depend on them."""
    labels, answers = root / f"labels_{number}", root / f"answers_{number}.jsonl"
    pseudo_label.main(
        config(), str(labels), str(root / "data"), str(root / "teacher"), cpu_devices=number
    )
    classifier = open_candidate("teacher", root / "teacher", "small").load(
        strategy.devices(cpu_devices=number)
    )
    inputs = suites.Inputs(clean=from_records(read_manifest(root / "data" / "test"), "clean"))
    folder = suites.Folder(root / f"evaluated_{number}", root / "progress.jsonl")
    suites.run(
        classifier,
        ("clean", "adversarial"),
        inputs,
        Settings.from_config(recipes.from_flags(*EVALUATION).evaluate),
        folder,
    )
    predict.main(
        str(root / "serving"), "jsonl", [str(root / "images")], str(answers), cpu_devices=number
    )
    found = {path.name: path.read_bytes() for path in labels.glob("*-of-*")} | {
        "answers": answers.read_bytes()
    }
    for file in ("predictions.npz", "adversarial.npz"):
        with np.load(folder.path / file) as arrays:
            found |= {
                f"{file} {key}": arrays[key].tobytes() for key in arrays.files if key != "seconds"
            }
    return found


def test_the_devices_change_no_byte(tmp_path: Path) -> None:
    prepare(tmp_path)
    expected = make(tmp_path, 1)
    assert len(expected) > SHARDS + 8
    ran = subprocess.run(
        [sys.executable, "-m", "tests.workflow.test_all_devices", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    used = json.loads(ran.stdout.splitlines()[-1])
    for number in (2, 4):
        assert used[str(number)] == [f"CPU:{i}" for i in range(number)]
        with np.load(tmp_path / f"made_{number}.npz") as made:
            assert {key: made[key].tobytes() for key in made.files} == expected


def main(root: Path) -> None:
    """Prints the devices on which weights were read."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
    used: dict[int, Any] = {}
    load = model_dir.load

    def noting(*arguments: Any) -> Any:
        model, spec = load(*arguments)
        used[number].add(model.variables[0].device.rpartition("device:")[2])
        return model, spec

    model_dir.load = noting
    for number in (2, 4):
        used[number] = set()
        strategy.devices = lambda *_, **__: tuple(f"CPU:{i}" for i in range(number))  # noqa: B023
        np.savez(
            root / f"made_{number}.npz",
            **{key: np.frombuffer(value, np.uint8) for key, value in make(root, number).items()},
        )
    print(json.dumps({number: sorted(names) for number, names in used.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
