"""A running development server, and how tests ask it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
PREDICT = "/v1/models/classifier:predict"

# The same as `run_serve.sh --local`, with less patience for slow clients.
PROGRAM = (
    "import sys; from pathlib import Path; from serving import local;"
    " local.serve(Path(sys.argv[1]), '127.0.0.1', 0, 0, True, seconds=3.0)"
)


class Process:
    """A running server. `url` maps "http" and "grpc" to its URLs."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            line = self.process.stdout.readline()  # a server that dies ends the line
            self.url = {url.partition(":")[0]: url for url in re.findall(r"\w+://[0-9.:]+", line)}
            assert set(self.url) == {"http", "grpc"}, line + (
                self.process.stderr.read() if not line else ""
            )
        except BaseException:
            self.stop()
            raise

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.process.stdout.close()
            self.process.stderr.close()


def call(server, path, body=None, method=None, headers=None):
    """Returns (HTTP code, decoded answer)."""
    connection = http.client.HTTPConnection(urlsplit(server.url["http"]).netloc, timeout=60)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
