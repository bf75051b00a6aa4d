"""A stage in a bucket: killed, it goes on with an empty cache to the bits of a local one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import app, commands, places, stores
from cli.errors import InputError
from tests import bucket_server, networks
from tests.training_runs import metrics

pytestmark = pytest.mark.filterwarnings("ignore")  # what boto3, moto and Flask say of each other
SMALL = [
    "--config=configs/noisy_student/digits.py",
    "--config.data.out_of_domain=20",
    "--config.data.num_shards=3",
    *networks.flags("teacher"),
    "--config.teacher.steps=12",
    "--config.teacher.batch_size=8",
    "--config.teacher.log_every=1",
    "--config.teacher.checkpoint_every=5",
]


def run(name: str, *words: str) -> None:
    """Does in this process what a script does."""
    command = commands.TABLE[name]
    values = app.parse(command, [*SMALL, *words])
    with places.staged(command, values, False) as staged:
        app.load(command.target)(**staged)


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_training_goes_on_from_the_bucket(tmp_path, monkeypatch):
    run("prepare_data", f"--workdir={tmp_path}/data")
    run("teacher", f"--workdir={tmp_path}/teacher", f"--data={tmp_path}/data")
    with bucket_server.running(monkeypatch, tmp_path / "cache") as server:
        run("prepare_data", "--workdir=s3://bucket/data")
        stored = server.objects()
        local = files(tmp_path / "data")
        assert {f"data/{name}": content for name, content in local.items()} == stored
        left = [9]  # config.json, a checkpoint and its log are 6 objects: within the second

        def cut(method: str, key: str) -> str:
            left[0] -= method == "PUT" and not key.endswith(stores.CLAIM)
            return "403 AccessDenied" if left[0] < 0 and not key.endswith(stores.CLAIM) else ""

        server.fault = cut
        with pytest.raises(InputError, match="no permission"):
            run("teacher", "--workdir=s3://bucket/teacher", "--data=s3://bucket/data")
        server.fault = lambda method, key: ""
        bucket_server.another_machine(monkeypatch, tmp_path / "other")
        steps = {key for key in server.objects() if "/ckpt-" in key and key.endswith(".index")}
        assert steps == {"teacher/checkpoints/ckpt-5.index"}
        run("teacher", "--workdir=s3://bucket/teacher", "--data=s3://bucket/data")
        for key, content in server.objects().items():
            path = tmp_path / "downloaded" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    here, there = tmp_path / "teacher", tmp_path / "downloaded" / "teacher"
    for name in ("config.json", "model/model.weights.h5", "model/model.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert {path.name for path in (here / "checkpoints").iterdir()} == {
        path.name for path in (there / "checkpoints").iterdir()
    }
    clock = ("seconds", "images_per_second")
    rows = [
        [{key: value for key, value in row.items() if key not in clock} for row in metrics(run)]
        for run in (here, there)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 12
