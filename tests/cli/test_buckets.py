"""Directories in a bucket: what goes there in which order, what comes back, and what may fail."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import buckets, claims, places, s3, stores, work_dirs
from cli.errors import InputError
from cli.files import atomic_path, remove_temporaries
from cli.flags import Command, Flag
from cli.json_files import read_json, write_json
from cli.shelf import SHARD, Reader, Shelf
from data import sources
from tests import bucket_server, google_server

pytestmark = pytest.mark.filterwarnings("ignore")  # what boto3, moto and Flask say of each other
SERVERS = {"s3": bucket_server, "gs": google_server}
COMMAND = Command(
    "teacher",
    "no:thing",
    "Does it.",
    "Leaves it.",
    (
        Flag("workdir", "Where."),
        Flag("data", "From where.", default=None, finished=True),
        Flag("labeled", "Images.", default=None),
        Flag("strategy", "How.", default="auto"),
        Flag("tpu", "Which.", default="", address=True),
    ),
    (),
)


@pytest.fixture(name="server", params=SERVERS)
def _server(request, tmp_path, monkeypatch):
    with SERVERS[request.param].running(monkeypatch, tmp_path / "cache") as server:
        server.run = f"{server.scheme}://bucket/a/run"
        yield server


@pytest.fixture(name="amazon")
def _amazon(tmp_path, monkeypatch):
    with bucket_server.running(monkeypatch, tmp_path / "cache") as server:
        yield server


def staged(force=False, **values):
    return places.staged(COMMAND, {"strategy": "auto", **values}, force)


def write(path, content="x"):
    with atomic_path(path) as temporary:
        temporary.write_text(content)


def test_a_work_directory_goes_to_the_bucket_and_comes_back_elsewhere(
    server, tmp_path, monkeypatch, capsys
):
    with staged(workdir=server.run) as values:
        here = Path(values["workdir"])
        assert here == tmp_path / "cache" / server.scheme / "bucket" / "a" / "run"
        assert work_dirs.start(here, {"folder": str(here / "images")}) is None
        write(here / "data-00000-of-00001", "shard")
        (here / "tensorboard").mkdir()
        (here / "tensorboard" / "events").write_text("not written by atomic_path")
        (here / ".half.tmp-x-1").write_text("of a killed process")
        work_dirs.finish(here, {"report": str(here / "report.html")})
        print(f"see {here}/report.html")
    assert capsys.readouterr().out == f"see {server.run}/report.html\n"
    stored = {key: value.decode() for key, value in server.objects().items()}
    assert stored == {
        "a/run/config.json": json.dumps({"folder": f"{server.run}/images"}, indent=2) + "\n",
        "a/run/data-00000-of-00001": "shard",
        "a/run/summary.json": json.dumps({"report": f"{server.run}/report.html"}, indent=2) + "\n",
        "a/run/tensorboard/events": "not written by atomic_path",
    }
    puts = [key for method, key in server.requests if method == "PUT" and "claim" not in key]
    assert puts == [
        f"a/run/{name}"
        for name in ("config.json", "data-00000-of-00001", "tensorboard/events", "summary.json")
    ]
    bucket_server.another_machine(monkeypatch, tmp_path / "other")
    with staged(workdir=server.run) as values:
        there = Path(values["workdir"])
        assert there.is_relative_to(tmp_path / "other")
        summary = work_dirs.start(there, {"folder": str(there / "images")})
        assert summary == {"report": str(there / "report.html")}
        assert sorted(path.name for path in there.iterdir()) == ["config.json", "summary.json"]
        shard = there / "data-00000-of-00001"
        assert buckets.size(shard) == 5 and buckets.missing(there, [shard.name, "no"]) == ["no"]
        buckets.fetch([shard, there / "no"])
        assert shard.read_text() == "shard" and not (there / "no").exists()
        before = len(server.requests)
        buckets.fetch([shard])
        assert len(server.requests) == before


def test_the_bucket_is_right_where_the_cache_differs(server):
    with staged(workdir=server.run) as values:
        here = Path(values["workdir"])
        write(here / "sub" / "kept")
        write(here / "sub" / "changed")
        write(here / "pool-00000-of-00002")
        write(here / "pool-00001-of-00002")
    stamps = (here / "sub" / "kept").stat().st_mtime_ns
    (here / "never_sent" / "deep").mkdir(parents=True)
    (here / "never_sent" / "deep" / "file").touch()
    (here / "summary.json").write_text("{}")
    server.put("a/run/sub/changed", b"y")
    server.put("a/run/pool-00001-of-00002", b"y")
    server.put("a/run/new", b"new")
    with staged(workdir=server.run):
        names = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
        assert names == {"sub/kept", "sub/changed", "new", "pool-00000-of-00002"}
        assert (here / "sub" / "changed").read_text() == "y"
        assert (here / "sub" / "kept").stat().st_mtime_ns == stamps
        assert not (here / "never_sent").exists()


def test_an_end_at_any_moment_leaves_an_earlier_state(server, monkeypatch):
    """Tests that whatever a file names has been there before the file, and goes after it."""

    def work(here):
        write(here / "config.json")
        for name in ("pool-00000-of-00002", "pool-00001-of-00002", "manifest.json"):
            write(here / "split" / name)
        (here / "export").mkdir()
        for name in ("variables", "saved_model.pb"):
            (here / "export" / name).write_text(name)
        work_dirs.finish(here, {})
        buckets.remove_tree(here / "split")

    needs = {
        "split/manifest.json": {"split/pool-00000-of-00002", "split/pool-00001-of-00002"},
        "export/saved_model.pb": {"export/variables"},
        "summary.json": {"config.json", "export/saved_model.pb"},
    }
    seen = set()
    for left in range(1, 40):
        buckets.remove_tree(buckets.local_path(server.run))
        count = [left]

        def fail(method, key, count=count):
            if method in ("PUT", "DELETE") and "claim" not in key:
                count[0] -= 1
            return "403 AccessDenied" if count[0] < 0 else ""

        server.fault = fail
        try:
            with staged(workdir=server.run) as values:
                work(Path(values["workdir"]))
            ended = True
        except InputError as error:
            ended = "no permission" not in str(error)
        server.fault = lambda method, key: ""
        there = {key[len("a/run/") :] for key in server.objects()} - {stores.CLAIM}
        for name in there & needs.keys():
            assert needs[name] <= there, (left, there)
        seen.add(frozenset(there))
        if ended:
            break
        server.remove(f"a/run/{stores.CLAIM}")
    assert ended and len(seen) > 6


@pytest.mark.parametrize(
    "fault",
    ["500 InternalError", "503 SlowDown", "429 ", "after 500 InternalError", "cut", "slow"],
)
def test_failing_requests_are_repeated_and_nothing_is_doubled(server, tmp_path, monkeypatch, fault):
    count = {}

    def fail(method, key):
        count[method, key] = count.get((method, key), 0) + 1
        return fault if count[method, key] in (1, 2) else ""

    server.fault = fail
    content = {f"sub/file{i}": str(i) * 1000 for i in range(4)}
    with staged(workdir=server.run) as values:
        for name, text in content.items():
            write(Path(values["workdir"], name), text)
        buckets.remove(Path(values["workdir"], "sub", "file3"))
    bucket_server.another_machine(monkeypatch, tmp_path / "other")
    count.clear()
    with staged(workdir=server.run) as values:
        found = {
            str(path.relative_to(values["workdir"])): path.read_text()
            for path in Path(values["workdir"]).rglob("*")
            if path.is_file()
        }
    del content["sub/file3"]
    assert found == content
    server.fault = lambda method, key: ""
    assert {key[len("a/run/") :]: value.decode() for key, value in server.objects().items()} == (
        content
    )


def test_a_damaged_upload_is_noticed(amazon):
    path = Path(buckets.local_path("s3://bucket/file"))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")

    def other(method, key):
        if method == "HEAD":
            amazon.put("file", b"abd")  # as many bytes
        return ""

    amazon.fault = other
    with pytest.raises(InputError, match=r"no answer after \d attempts \(NotWhole\)"):
        buckets.publish(path)


def test_the_claim(server, monkeypatch):
    with (
        staged(workdir=server.run),
        pytest.raises(InputError, match=r"has been at work in .*add --force"),
    ):
        staged(workdir=server.run).__enter__()
    assert server.objects() == {}

    program = (
        "import os, signal; from cli import claims; from cli.stores import Place;"
        f"place = Place('{server.scheme}', 'bucket', 'a/run');"
        "claim = claims.claimed(place, False); claim.__enter__();"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=Path(places.__file__).parents[1]
    )
    assert list(server.objects()) == [f"a/run/{stores.CLAIM}"]
    with staged(workdir=server.run):  # a process of this machine that is gone
        pass
    assert server.objects() == {}

    elsewhere = {"host": "elsewhere", "pid": 1, "kernel": "k", "began": "1", "token": "t"}
    server.put(f"a/run/{stores.CLAIM}", json.dumps(elsewhere).encode())
    with pytest.raises(InputError, match="elsewhere, process 1, has been at work"):
        staged(workdir=server.run).__enter__()
    with staged(workdir=server.run, force=True) as values:
        write(Path(values["workdir"], "one"))
        server.put(f"a/run/{stores.CLAIM}", json.dumps(elsewhere).encode())  # by --force again
        monkeypatch.setattr(claims, "_CHECK_EVERY", 0.0)
        with pytest.raises(InputError, match="taken over by elsewhere"):
            write(Path(values["workdir"], "two"))
        with pytest.raises(InputError, match="taken over by elsewhere"):
            buckets.remove(Path(values["workdir"], "one"))
        monkeypatch.setattr(buckets, "publish_tree", lambda directory: None)
    assert sorted(server.objects()) == [f"a/run/{stores.CLAIM}", "a/run/one"]  # theirs stays


def test_a_store_without_conditional_puts_is_refused(server):
    server.ignored = server.condition
    with pytest.raises(InputError, match="ignores the conditions of puts, so two commands could"):
        staged(workdir=server.run).__enter__()
    assert server.objects() == {}
    server.ignored = ""
    server.fault = lambda method, key: "501 NotImplemented" if method == "PUT" else ""
    with pytest.raises(InputError, match=r"the store refuses the request \(501 NotImplemented\)"):
        staged(workdir=server.run).__enter__()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"workdir": "az://bucket/run"}, "--workdir: az://bucket/run is an address; mount"),
        ({"workdir": "w", "labeled": "hdfs://b/x"}, "--labeled: hdfs://b/x is an address"),
        ({"workdir": "w", "labeled": "tar:https://h/x.tar"}, "is an address; mount"),
        ({"workdir": "s3://bucket"}, "s3://bucket names no folder of a bucket"),
        ({"workdir": "s3://bucket/../x"}, "names no folder of a bucket"),
        ({"workdir": "w", "labeled": "s3://bucket/*.tar"}, "a pattern cannot be in a bucket"),
        (
            {"workdir": "s3://bucket/a/run", "strategy": "multi_worker"},
            "--strategy=multi_worker cannot be combined with",
        ),
        (
            {"workdir": "s3://bucket/a/run", "beam_options": ["--runner=DaskRunner"]},
            "--runner cannot be combined with",
        ),
        ({"workdir": "s3://absent/x"}, "s3://absent: there is no such bucket; create it"),
        ({"workdir": "w", "data": "s3://bucket/no"}, "s3://bucket/no does not exist"),
        ({"workdir": "w", "force": True}, "--force is for a work directory in a bucket"),
    ],
)
def test_unusable_urls(server, values, message):
    values = {
        name: value.replace("s3://", f"{server.scheme}://") if isinstance(value, str) else value
        for name, value in values.items()
    }
    message = message.replace("s3://", f"{server.scheme}://")
    force = values.pop("force", False)
    with pytest.raises(InputError, match=message) as raised, staged(force, **values):
        pass
    assert "\n" not in str(raised.value)


def test_other_commands_say_that_they_take_local_paths():
    other = Command("fixres", "no:thing", "", "", (Flag("model", ""),), (), group="tool")
    with (
        pytest.raises(InputError, match=r"is in a bucket, but ./run_tool.sh fixres needs a local"),
        places.staged(other, {"model": "gs://bucket/a/run"}, False),
    ):
        pass
    assert places.named(COMMAND, {"tpu": "grpc://host:1"}) == []


def test_no_permission_no_server_no_package(amazon, monkeypatch):
    amazon.fault = lambda method, key: "403 AccessDenied"
    with pytest.raises(InputError, match=r"no permission \(AccessDenied\)") as raised:
        staged(workdir="s3://bucket/a/run").__enter__()
    amazon.fault = lambda method, key: "500 InternalError"
    with pytest.raises(InputError, match=r"no answer after 7 attempts \(500 InternalError\)"):
        staged(workdir="s3://bucket/a/run").__enter__()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hidden@127.0.0.1:9")
    s3._client.cache_clear()
    with pytest.raises(InputError, match="no answer after 7 attempts") as unanswered:
        staged(workdir="s3://bucket/a/run").__enter__()
    said = f"{raised.value}{unanswered.value}"
    assert "AKIA" not in said and "secret" not in said and "hidden" not in said
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nonexistent")
    s3._client.cache_clear()
    with pytest.raises(InputError, match="no credentials"):
        staged(workdir="s3://bucket/a/run").__enter__()
    monkeypatch.setitem(sys.modules, "boto3", None)
    s3._client.cache_clear()
    with pytest.raises(InputError, match=r"needs the package boto3; docs/installation.md says how"):
        staged(workdir="s3://bucket/a/run").__enter__()


def test_inputs_come_whole_or_without_shards(server, tmp_path):
    for key in (
        *("data/summary.json", "data/labeled/manifest.json", "data/labeled/l-00000-of-00001"),
        *("photos/a/1.jpg", "photos/t-00000-of-00001", "ckpt/m.ckpt.index"),
        *("ckpt/m.ckpt.data-00000-of-00001", "ckpt/m.ckpt2.index", "list.csv"),
        *("data/checkpoints/ckpt-1.index", "data/tensorboard/x"),
    ):
        server.put(key, key.encode())

    def names(values, name):
        root = tmp_path / "cache" / server.scheme / "bucket"
        with staged(workdir=str(tmp_path / "w"), **{name: values}) as got:
            assert str(root) in got[name]
            return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    data = {"data/summary.json", "data/labeled/manifest.json"}
    assert names(f"{server.scheme}://bucket/data/", "data") == data
    images = {"photos/a/1.jpg", "photos/t-00000-of-00001"}
    assert names(f"tfrecord:{server.scheme}://bucket/photos", "labeled") == data | images
    checkpoint = {"ckpt/m.ckpt.index", "ckpt/m.ckpt.data-00000-of-00001"}
    assert names(f"{server.scheme}://bucket/ckpt/m.ckpt", "data") == data | images | checkpoint
    assert names(f"{server.scheme}://bucket/list.csv", "labeled") >= {"list.csv"}
    server.put("bad/../../x", b"")
    with pytest.raises(InputError, match="no file can have this name"):
        names(f"{server.scheme}://bucket/bad", "labeled")
    server.remove("data/summary.json")
    assert "data/summary.json" not in names(f"{server.scheme}://bucket/data", "data")


def test_the_shelf_keeps_what_was_read_last(server, tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET_CACHE_GIB", str(4.5 * 1000 / 2**30))
    folder, reader = Path(buckets.local_path(server.run)), Reader()
    paths = [folder / f"pool-{i:05d}-of-00009" for i in range(9)]
    for path in paths:
        server.put(f"a/run/{path.name}", path.name.encode() * 50)  # 1,000 bytes
    server.put("a/run/variables.data-00000-of-00001", b"x" * 10_000)
    buckets.refresh(str(folder), own=True)
    for path in paths:
        buckets.fetch([path], reader)
        assert path.read_bytes() == path.name.encode() * 50
    assert [path for path in paths if path.exists()] == paths[-4:]
    assert (folder / "variables.data-00000-of-00001").exists()
    buckets.fetch(paths[:5], reader)  # more than the limit, and all are needed
    assert all(path.exists() for path in paths[:5])
    buckets.prefetch(paths[5:6])
    buckets.fetch(paths[5:6])
    assert all(path.exists() for path in paths[:6])
    monkeypatch.setenv("BUCKET_CACHE_GIB", "0")
    with pytest.raises(InputError, match="BUCKET_CACHE_GIB is '0'"):
        Shelf().add(1, str(folder))


def test_a_fetched_shard_stays_whoever_else_reads(server, monkeypatch):
    monkeypatch.setenv("BUCKET_CACHE_GIB", str(2000 / 2**30))
    paths = [Path(buckets.local_path(server.run), f"pool-{i:05d}-of-00012") for i in range(12)]
    for path in paths:
        server.put(f"a/run/{path.name}", b"x" * 1000)

    def read(start):
        lost, reader = 0, Reader()
        for step in range(15):
            reader = reader if step % 3 else Reader()
            path = paths[(start + 5 * step) % len(paths)]
            buckets.fetch([path], reader)
            lost += not path.exists()
        return lost

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(4))) == [0] * 4


def test_paths_outside_of_the_cache_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_store", lambda scheme: pytest.fail("a local path asks no store"))
    path = tmp_path / "x" / "pool-00000-of-00001"
    write(path)
    buckets.fetch([path])
    buckets.prefetch([path])
    buckets.publish_tree(path.parent)
    assert buckets.size(path) == 1 and buckets.size(tmp_path / "no") is None
    assert buckets.missing(path.parent, [path.name, "no"]) == ["no"]
    write_json(tmp_path / "x.json", {"url": "s3://a/b"})
    assert read_json(tmp_path / "x.json") == {"url": "s3://a/b"}
    remove_temporaries(path.parent)
    buckets.remove(path)
    buckets.remove_tree(path.parent)
    assert os.listdir(tmp_path) == ["x.json"]


def test_locations_of_a_recipe_are_no_addresses():
    for location in ("gs://bucket/photos", "tar:s3://bucket/x.tar"):
        with pytest.raises(InputError, match=f"^{location} is an address; mount or copy"):
            sources.absolute(location, "image_folder")
    assert sources.absolute("tfds:name/train", "image_folder") == "tfds:name/train"


def test_names_of_shards():
    assert SHARD.fullmatch("labeled-00000-of-00010") and SHARD.fullmatch("x-00000-of-00010.index")
    for name in ("ckpt-3.data-00000-of-00001", "variables.data-00000-of-00001", "manifest.json"):
        assert not SHARD.fullmatch(name)
