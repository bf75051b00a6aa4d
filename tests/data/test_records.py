"""Training records: readers get what was written, and a damaged file never passes for whole."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess

import pytest

from cli.errors import InputError
from data import protos, records

NAMES = ("ant", "bee", "cat")


def examples(count: int) -> list[bytes]:
    return [protos.make_example(bytes([i]) * (20 + i), f"key/{i}", i % 3 + 1) for i in range(count)]


@pytest.fixture
def split(tmp_path):
    return records.write_split(
        tmp_path / "s",
        "s",
        examples(10),
        3,
        10,
        kind="labeled",
        label_names=NAMES,
        label_offset=1,
        extra={"source": "test"},
    )


def test_split_round_trip(split):
    assert records.read_manifest(split.directory, "labeled") == split
    assert split.files == ("s-00000-of-00003", "s-00001-of-00003", "s-00002-of-00003")
    assert split.records == (3, 3, 4)  # shard i gets [10 i / 3, 10 (i + 1) / 3)
    assert (split.num_records, split.num_classes) == (10, 3)
    assert [record for path in split.paths for record in records.read_shard(path)] == examples(10)
    records.verify_split(split)


def test_rewriting_leaves_no_old_shards(split):
    (split.directory / ".s-00000-of-00003.tmp-1").write_bytes(b"left by a killed run")
    again = records.write_split(split.directory, "s", examples(4), 1, 4, kind="unlabeled")
    assert sorted(path.name for path in again.directory.iterdir()) == [
        "manifest.json",
        "s-00000-of-00001",
        "s-00000-of-00001.index",
    ]


def test_an_interrupted_split_has_no_manifest(split):
    def interrupted():
        yield from examples(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_split(split.directory, "s", interrupted(), 3, 10, kind="labeled")
    # Only the shard that was whole with its index, and no temporary file.
    assert sorted(path.name for path in split.directory.iterdir()) == [
        "s-00000-of-00003",
        "s-00000-of-00003.index",
    ]
    with pytest.raises(InputError, match=r"no manifest\.json"):
        records.read_manifest(split.directory)


@pytest.mark.parametrize("announced", [9, 11])
def test_wrong_number_of_examples(tmp_path, announced):
    with pytest.raises(ValueError, match=str(announced)):
        records.write_split(tmp_path, "s", examples(10), 2, announced, kind="labeled")


@pytest.mark.parametrize(
    ("count", "shards"),
    [(0, 1), (1, 1), (2000, 1), (2001, 2), (1_281_167, 641), (300_000_000, 16_384)],
)
def test_number_of_shards(count, shards):
    assert records.num_shards_for(count) == shards


def test_manifest_errors(split, tmp_path):
    with pytest.raises(
        InputError, match="holds labeled records, but predictions records are needed here"
    ):
        records.read_manifest(split.directory, "predictions")
    with pytest.raises(InputError, match="does not exist"):
        records.read_manifest(tmp_path / "nowhere")
    (split.directory / split.files[2]).unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 3 shards \(first: s-00002-of-00003\)"):
        records.read_manifest(split.directory)
    path = split.directory / "manifest.json"
    value = json.loads(path.read_text())
    for broken in (
        "{",
        "[]",
        json.dumps({**value, "num_records": 11}),
        json.dumps({**value, "kind": "other"}),
    ):
        path.write_text(broken)
        with pytest.raises(
            InputError, match=r"manifest\.json (is damaged|cannot be read|contradicts itself)"
        ):
            records.read_manifest(split.directory)


def changed(value, *path, to):
    """Returns `value` with one entry set; Ellipsis removes it."""
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return value


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("files", 0, "name"), "../s-00000-of-00003", "is not the name of a file in the directory"),
        (("files", 0, "name"), "/etc/passwd", "'/etc/passwd' is not the name of a file"),
        (("files", 0, "name"), "..", "is not the name of a file"),
        (("files", 0, "name"), 7, r"files\[0\]\.name is 7, not a text"),
        (("files", 0, "name"), "s-00001-of-00003", "s-00001-of-00003 is listed 2 times"),
        (("files", 0, "records"), -3, "has -3 records"),
        (("files", 0, "records"), 3.0, r"files\[0\]\.records is 3\.0, not a whole number"),
        (("files", 0, "records"), True, "records is True"),
        (("files", 0, "records"), "3", "records is '3'"),
        (("files", 0, "records"), float("inf"), "Infinity is not a finite number"),
        (("files", 0, "records"), 10**30, "1000.* has 31 digits and is too large"),
        (("files", 0, "sha256"), "ab", "has the SHA-256 'ab'"),
        (("files", 0, "sha256"), ..., r"it has no files\[0\]\.sha256"),
        (("files", 0), "s-00000-of-00003", r"files\[0\] is 's-00000-of-00003', not an object"),
        (("files",), {}, r"files is \{\}, not a list"),
        (("num_records",), 11, "num_records is 11, but its files have 10"),
        (("num_records",), None, "num_records is None, not a whole number"),
        (("label_names",), "abc", "label_names is"),
        (("label_names", 1), None, r"label_names\[1\] is None, not a text"),
        (("label_offset",), 0.5, r"label_offset is 0\.5, not a whole number"),
        (("label_offset",), 2**63, "label_offset is 9223372036854775808"),
        (("kind",), ["labeled"], "kind is"),
        (("kind",), "other", "its kind is 'other'"),
        (("name",), ..., "it has no name"),
        (("extra",), [], "extra is"),
    ],
)
def test_a_manifest_that_nobody_of_ours_has_written(split, path, to, message):
    file = split.directory / "manifest.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), *path, to=to)))
    with pytest.raises(
        InputError,
        match=(
            rf"^[^\n]*manifest\.json is damaged: [^\n]*{message}[^\n]*; "
            r"create it or fetch it again$"
        ),
    ):
        records.read_manifest(split.directory)


@pytest.mark.parametrize("text", ['"x"', "[" * 100_000, "Infinity", ""])
def test_a_manifest_that_is_no_object(split, text):
    (split.directory / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json is damaged: [^\n]*$"):
        records.read_manifest(split.directory)


# Damage


def test_every_cut_in_the_last_record_is_noticed(split):
    path = split.directory / split.files[0]  # records 0, 1, 2
    whole = path.read_bytes()
    last = len(examples(3)[2]) + 16
    for size in range(len(whole) - last + 1, len(whole)):
        path.write_bytes(whole[:size])
        problems: list[str] = []
        assert list(records.read_shard(path, "skip", problems)) == examples(2)
        assert problems == [f"{path}: record 2 (counting from 0) is truncated"]
    with pytest.raises(
        InputError, match=re.escape(f"{path}: record 2 (counting from 0) is truncated")
    ):
        list(records.read_shard(path))


def test_a_cut_between_records_is_noticed_by_the_count(split):
    path = split.directory / split.files[0]
    path.write_bytes(path.read_bytes()[: -len(examples(3)[2]) - 16])
    with pytest.raises(InputError, match=r"2 records, but its manifest.json says 3"):
        list(records.read_shard(path, num_records=3))
    with pytest.raises(InputError, match="2 records"):
        records.verify_split(split)


@pytest.mark.parametrize("place", [0, 9, 12, 30, -1])  # length, its CRC, data, data, the data's CRC
def test_a_flipped_bit_is_noticed(split, place):
    path = split.directory / split.files[1]
    damaged = bytearray(path.read_bytes())
    start = len(examples(4)[3]) + 16  # of the shard's record 1
    end = start + len(examples(5)[4]) + 16
    damaged[start + place if place >= 0 else end + place] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(
        InputError, match=r"s-00001-of-00003: record 1 \(counting from 0\) is (corrupt|truncated)"
    ):
        list(records.read_shard(path))
    problems: list[str] = []
    assert list(records.read_shard(path, "skip", problems)) == examples(4)[3:]
    assert len(problems) == 1


def header(length):
    """Returns a TFRecord's header for that length, with the right CRC."""
    crc, data = 0xFFFFFFFF, length.to_bytes(8, "little")
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return data + masked.to_bytes(4, "little")


def test_headers_are_those_of_tensorflow(split):
    assert (split.directory / split.files[0]).read_bytes().startswith(header(len(examples(1)[0])))


@pytest.mark.parametrize("length", [2**29, 2**40, 2**63, 2**64 - 1])
def test_a_length_beyond_the_file_is_not_asked_for(split, length):
    """TensorFlow would crash, and this process with it."""
    path = split.directory / split.files[0]
    path.write_bytes(path.read_bytes() + header(length) + b"1234")
    problems: list[str] = []
    assert list(records.read_shard(path, "skip", problems)) == examples(3)
    assert problems == [f"{path}: record 3 (counting from 0) is corrupt"]
    with pytest.raises(
        InputError, match=r"record 3 .counting from 0. is corrupt; make the file again"
    ):
        list(records.read_shard(path))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        list(records.read_shard(tmp_path / "nowhere"))


def test_verify_notices_an_exchanged_file(split):
    records.write_shard(split.paths[0], examples(9)[6:9])
    with pytest.raises(InputError, match="SHA-256"):
        records.verify_split(split)


def test_verify_notices_a_label_out_of_range(split):
    with pytest.raises(
        InputError,
        match=(
            r"s-00000-of-00003: record 0 \(counting from 0\) has label 1; the labels of this split"
            r" are 2\.\.4"
        ),
    ):
        records.verify_split(dataclasses.replace(split, label_offset=2))
    records.write_split(
        split.directory,
        "s",
        [protos.make_example(b"", "k")],
        1,
        1,
        kind="labeled",
        label_names=NAMES,
    )
    with pytest.raises(InputError, match="no label"):
        records.verify_split(records.read_manifest(split.directory))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    records.write_shard(small_disk / "first", [b"x" * 30_000])
    with pytest.raises(InputError, match=r"no space left on the disk of .*/second; make room"):
        records.write_shard(small_disk / "second", [b"x" * 10_000 for _ in range(20)])
    assert [path.name for path in small_disk.iterdir()] == ["first"]
