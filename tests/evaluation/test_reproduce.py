"""Published numbers by one command.

The checkpoint is in the release's format, and a hundred images are in ImageNet's layout.
"""

from __future__ import annotations

import dataclasses
import functools
import http.server
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import tensorflow as tf

from cli import app, commands
from cli.errors import InputError
from evaluation import imagenet, imagenet_validation, reproduce
from tests.data.test_archives import tar
from tests.weights.test_weights import release_shapes, write_checkpoint
from weights import published

WNIDS = imagenet.wnids()
CHOSEN, OTHER = 6, 0  # of ImageNet-A, and not
REAL = os.environ.get("IMAGENET_REAL", "")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return tf.io.encode_jpeg(pixels).numpy()


def validation(folder: Path, labels: list[int]) -> Path:
    """Writes ImageNet's official validation files, with as many images as there are labels."""
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    backwards = WNIDS[::-1]  # the competition's numbers are in another order
    synsets = np.array(
        [[(i + 1, synset, "a word")] for i, synset in enumerate(backwards)], dtype=kind
    )
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets})
    truth = "".join(f"{1000 - label}\n" for label in labels)
    root = "ILSVRC2012_devkit_t12/data"
    devkit = {
        f"{root}/meta.mat": meta.getvalue(),
        f"{root}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit, "w:gz")
    images = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(i) for i in range(len(labels))}
    tar(folder / "ILSVRC2012_img_val.tar", images)
    return folder


def values() -> dict[str, np.ndarray]:
    """Returns random weights of a whole B0 that answers `CHOSEN`, whatever the image."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in release_shapes(1.0, 1.0, 1000).items():
        last = name.rpartition("/")[2]
        scale, mean = {"gamma": (0.1, 1), "moving_variance": (0.1, 1)}.get(last, (0.02, 0))
        found[name] = (mean + scale * rng.uniform(-1, 1, shape)).astype(np.float32)
    found["head/dense/bias"][CHOSEN] = 100
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs noisy_student_efficientnet-b0.tar.gz as released: a folder with the checkpoint."""
    folder = tmp_path_factory.mktemp("release")
    prefix = write_checkpoint(folder / "model.ckpt", values(), slots=False)
    name = "noisy_student_efficientnet-b0"
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz", compresslevel=1) as packed:
        for path in sorted(folder.glob(f"{prefix.name}*")):
            packed.add(path, f"{name}/{path.name}")
    return folder / f"{name}.tar.gz"


@pytest.fixture
def server(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the archive on this machine instead of the release; the cache is empty."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        url = f"http://127.0.0.1:{serving.server_address[1]}"
        moved = [
            dataclasses.replace(row, url=f"{url}/{row.url.rpartition('/')[2]}")
            for row in published.TABLE
        ]
        monkeypatch.setattr(published, "TABLE", tuple(moved))
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield url
        serving.shutdown()
        thread.join()


def run(*words: str) -> int:
    return reproduce.main(**app.parse(commands.TABLE["reproduce"], words))


def test_the_whole_way(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Downloads, reads, measures, compares; the network's answer is right for 79 of 100 images."""
    labels = [CHOSEN if i % 100 < 79 else OTHER for i in range(100)]
    images = validation(tmp_path / "imagenet", labels)
    for label in (CHOSEN, 11):
        path = tmp_path / "a" / WNIDS[label] / "0.JPEG"
        path.parent.mkdir(parents=True)
        path.write_bytes(jpeg(label))
    real = [[CHOSEN, 1], [], [OTHER], *([CHOSEN] for _ in range(97))]
    (tmp_path / "real.json").write_text(json.dumps(real))
    places = [
        f"--imagenet={images}",
        f"--data_a={tmp_path / 'a'}",
        f"--data_real={tmp_path / 'real.json'}",
    ]
    words = ["--name=noisy_student:b0", *places, f"--workdir={tmp_path / 'w'}"]
    assert run(*words) == 0
    told = capsys.readouterr().out
    assert "top1               79.00    70.02 to 85.83      78.80  reproduced" in told
    compared = json.loads((tmp_path / "w" / "comparison.json").read_text())
    assert compared["numbers"]["top1"]["ours"] == 79 and compared["weights"] == "noisy_student:b0"
    row = json.loads((tmp_path / "w/evaluation/summary.json").read_text())["models"][
        "noisy_student_b0"
    ]
    assert row["a"]["top1"] == 0.5 and row["real"]["precision"] == pytest.approx(98 / 99)
    assert run(*words) == 0  # done: nothing is downloaded or measured again
    # The same answers against another published number.
    better = dataclasses.replace(reproduce.checkpoint("noisy_student:b0"), top1=90.0)
    assert reproduce.compare(better, tmp_path / "w", {}) == 1
    assert "90.00  NOT REPRODUCED" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists(REAL), reason="IMAGENET_REAL names no real.json")
def test_the_authors_file_of_real() -> None:
    lists = imagenet.real_labels(REAL, [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(50_000)])
    assert len(lists) == 50_000 and sum(not own for own in lists) == 3163
    assert {label for own in lists for label in own} == set(range(1000))


def test_numbers_and_their_intervals() -> None:
    """Tests that mCE and mFR have the relative interval of the mean that they are scaled from."""
    row = {
        "examples": 50_000,
        "top1": 0.884,
        "top5": 0.987,
        "c": {"mean_error": 0.25, "mean_error_interval": [0.24, 0.26], "mce": 30.0},
        "p": {
            "mean_flip": 0.02,
            "mean_flip_interval": [0.019, 0.022],
            "mfr": 14.0,
            "top1": 0.85,
            "sequences": 1000,
        },
    }
    ours = dict(reproduce.numbers(row, {"c": 224, "p": 299}))
    assert ours["top1"] == pytest.approx(
        (88.4, 88.12, 88.68), abs=0.01
    )  # 88.4 ± 1.96 · sqrt(0.884 · 0.116 / 50,000)
    assert ours["c.mce@224"] == pytest.approx((30, 28.8, 31.2))
    assert ours["c.top1@224"] == pytest.approx((75, 74, 76))
    assert ours["p.mfr@299"] == pytest.approx((14, 13.3, 15.4))
    assert set(ours) == {"top1", "top5", "c.top1@224", "c.mce@224", "p.top1@299", "p.mfr@299"}


def test_the_side_of_a_released_set_is_that_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "noise" / "fog" / "1" / WNIDS[0] / "x.JPEG"
    path.parent.mkdir(parents=True)
    path.write_bytes(tf.io.encode_jpeg(np.zeros((224, 224, 3), np.uint8)).numpy())
    assert reproduce.side("c", tmp_path) == 224
    with pytest.raises(InputError, match=r"--data_p: .* holds no \*\.mp4"):
        reproduce.side("p", tmp_path)


def test_every_released_checkpoint_has_its_numbers_and_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run() == 0
    told = capsys.readouterr().out
    rows = reproduce.rows()
    assert [row.name for row in rows] == ["noisy_student"] * 10 + ["advprop"] * 9 + [
        "randaugment"
    ] * 2
    for row in rows:
        word = f"--name={row.name}:{row.network}"
        assert word in told
        app.parse(commands.TABLE["reproduce"], [word, "--imagenet=DIR", "--workdir=W"])
    assert "top1 88.4, top5 98.7, a.top1 83.7, a.top5 95.2, real.precision 90.55" in told
    assert {key for key, _ in reproduce.FIGURES} <= {row.name for row in rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--imagenet=DIR",), "--name is missing"),
        (("--name=noisy_studnt",), "did you mean noisy_student"),
        (("--name=noisy_student:b0",), "--imagenet and --workdir are missing"),
        (("--name=efficientnet-lite0",), "the papers do not state its numbers"),
        (("--name=noisy_student",), "noisy_student has no weights of model.name="),
    ],
)
def test_unusable_arguments(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(*words)


def test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    folder = validation(tmp_path / "imagenet", [0, 1])
    shuffled = tmp_path / "shuffled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet_validation, "wnids", lambda: (WNIDS[1], WNIDS[0], *WNIDS[2:]))
        with pytest.raises(InputError, match=f"has {WNIDS[0]} as class 0, which is {WNIDS[1]}"):
            imagenet_validation.prepare(str(folder), shuffled)
    assert not (shuffled / "summary.json").exists()
