"""Downloads from a server on this machine: whole, cut and continued, refused."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from cli.errors import InputError
from weights import download

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /weights.bin.

    Attributes:
      cuts: bytes after which each of the next answers ends.
      ranges: whether it knows the header Range.
      asked: the header Range of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path != "/weights.bin":
            self.send_error(404)
            return
        start = int(wanted.partition("=")[2].rstrip("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted and self.server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else len(CONTENT)
        self.wfile.write(CONTENT[start:end])
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "weights.bin"
    for _ in range(2):
        download.fetch(server.url, path, CHECKSUM)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]
    assert not path.with_name("weights.bin.part").exists()


def test_a_cut_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_command_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] * download.ATTEMPTS
    with pytest.raises(
        InputError,
        match=(
            rf"{server.url} cannot be downloaded .*cut after 100,000 of 2,800,000 bytes.*put it at"
            r" .*/w$"
        ),
    ):
        download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert not (tmp_path / "w").exists()
    download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert server.asked[-1] == "bytes=300000-"
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_what_was_whole_already_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(CONTENT)  # killed before it was renamed
    download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert (tmp_path / "w").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [1_000_000]
    download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert (tmp_path / "w").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_another_file_than_expected_is_refused_and_not_kept(
    server: Server, tmp_path: Path, algorithm: str
) -> None:
    with pytest.raises(
        InputError,
        match=(
            "does not hold the expected file, so the download is deleted.*"
            rf"\({algorithm} [0-9a-f]+, not 0000\)"
        ),
    ):
        download.fetch(server.url, tmp_path / "w", f"{algorithm}:0000")
    assert not any(path.name.startswith("w") for path in tmp_path.iterdir())


def test_a_damaged_file_in_the_cache_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"/w is damaged; delete it"):
        download.fetch(server.url, tmp_path / "w", CHECKSUM)
    assert not server.asked


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"other\.bin: the server answers 404 Not Found; put the file at .*/w by hand",
    ):
        download.fetch(server.url.replace("weights", "other"), tmp_path / "w")
    assert len(server.asked) == 1


def test_without_a_network_the_message_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:  # no server listens there
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.h5"
        with pytest.raises(InputError) as caught:
            download.fetch(url, tmp_path / "models" / "w.h5")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{url} cannot be downloaded (") and message.endswith(
        f"or fetch {url} elsewhere and put it at {tmp_path}/models/w.h5"
    )
