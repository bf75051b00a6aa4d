"""A person's folders, from JPEGs to a prediction, through the scripts.

The same again with a SIGKILL in every kind of stage.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from serving.client import Client
from training import model_dir

ROOT = Path(__file__).resolve().parents[1]
FLAGS = [
    "--config=configs/noisy_student/image_folder.py:b0",
    "--config.iterations=1",
    "--config.crossfit.folds=0",
    "--config.data.num_shards=3",
    *(
        f"--config.{section}.model.name=wrn_10_1" for section in ("teacher", "student")
    ),  # traced in half the time of an EfficientNet
    *(
        f"--config.{section}.{key}"
        for section in ("teacher", "student")
        for key in ("min_steps=24", "epochs=1", "log_every=2")
    ),
    *(f"--config.{section}.checkpoint_every=4" for section in ("teacher", "student")),
    "--config.balance.threshold=0.0",
]


def photograph(path, color, rng):
    """Writes a noisy 40x48 JPEG with a bright patch; the patch's color tells the class."""
    pixels = rng.integers(0, 100, (40, 48, 3))
    top, left = rng.integers(5, 20, 2)
    pixels[top : top + 15, left : left + 15] += np.array(color)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    colors = {"Äpfel": (150, 0, 0), "bananas": (130, 130, 0), "plums": (0, 0, 150)}
    for name, color in colors.items():
        for i in range(12):
            photograph(
                root / "labeled" / name / ("nested" if i % 2 else "") / f"{i} é.jpg", color, rng
            )
        for i in range(90):
            photograph(root / "unlabeled" / f"roll {i % 3}" / f"{name}{i}.jpg", color, rng)
    return root


def start(folders, workdir):
    command = [ROOT / "run_noisy_student.sh", *FLAGS, f"--workdir={workdir}"]
    command += [f"--{name}={folders / name}" for name in ("labeled", "unlabeled")]
    return subprocess.Popen(
        command,
        env={**os.environ, "VENV": sys.prefix},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows(directory):
    path = directory / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def unfinished(directory):
    return (directory / "config.json").exists() and not (directory / "summary.json").exists()


# Kind of stage -> what must have happened before the SIGKILL.
MOMENTS = {
    "teacher": lambda w: unfinished(w / "teacher") and rows(w / "teacher") >= 5,
    "predictions_1": lambda w: (
        unfinished(w / "predictions_1") and any((w / "predictions_1").glob("predictions-*"))
    ),
    "pseudo_labeled_1": lambda w: (
        unfinished(w / "pseudo_labeled_1")
        and any((w / "pseudo_labeled_1" / "progress").rglob("*.json"))
    ),
    "student_1": lambda w: unfinished(w / "student_1") and rows(w / "student_1") >= 7,
}


def kill_at(process, moment, workdir):
    deadline = time.monotonic() + 300
    while process.poll() is None and not moment(workdir):
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def served(export, image):
    """Returns what a server of the exported models answers over REST."""
    command = [
        ROOT / "run_serve.sh",
        f"--serving_dir={export}",
        "--local",
        "--rest_port=0",
        "--grpc_port=0",
    ]
    with subprocess.Popen(
        command, env={**os.environ, "VENV": sys.prefix}, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            ready = server.stdout.readline()  # empty where the server has died
            with Client(ready.split()[1], timeout=60) as client:
                (answer,) = client.predict([image.read_bytes()])
        finally:
            server.terminate()
    assert server.returncode == 0
    return answer


def test_killed_in_every_stage_it_ends_bit_identical_and_predicts(folders, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(folders, whole)
    output, _ = process.communicate()
    assert process.returncode == 0
    summary = json.loads((whole / "summary.json").read_text())
    assert len(summary["students"]) == 1
    assert Path(summary["figure"]).is_file()
    assert "student_1" in output

    for moment in MOMENTS.values():
        kill_at(start(folders, killed), moment, killed)
    last = start(folders, killed)
    output, _ = last.communicate()
    assert last.returncode == 0
    assert f"{killed / 'teacher'} is done" in output
    for name in ("teacher", "student_1"):
        expected, actual = (
            model_dir.load(directory / name)[0].get_weights() for directory in (whole, killed)
        )
        for a, b in zip(expected, actual):
            np.testing.assert_array_equal(a, b)
        losses = (
            [
                json.loads(line)["loss"]
                for line in (run / name / "metrics.jsonl").read_text().splitlines()
            ]
            for run in (whole, killed)
        )
        assert len(set(map(tuple, losses))) == 1
    for name in ("data/labeled", "data/unlabeled", "predictions_1", "pseudo_labeled_1"):
        shards = sorted((whole / name).glob("*-of-00003"))
        assert len(shards) == 3
        assert all(
            shard.read_bytes() == (killed / name / shard.name).read_bytes() for shard in shards
        )

    image = next((folders / "unlabeled").rglob("plums*.jpg"))
    command = [ROOT / "run_predict.sh", f"--model={killed / 'export'}", image]
    result = subprocess.run(
        command, env={**os.environ, "VENV": sys.prefix}, capture_output=True, text=True
    )
    assert result.returncode == 0
    answer = served(killed / "export", image)
    assert answer["status"] == 0 and answer["labels"][0] in ("Äpfel", "bananas", "plums")
    assert f": {answer['labels'][0]} {100 * max(answer['probabilities']):.1f} %" in result.stdout
