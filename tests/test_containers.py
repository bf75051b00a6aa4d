"""The container files: pinned, without root, with the same settings of TF Serving as elsewhere.

No image is built here.
"""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
from pathlib import Path

import pytest
import yaml

from serving import serve

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = ["Dockerfile", "Dockerfile.gpu"]


def instructions(name: str) -> list[tuple[str, str]]:
    """Returns each instruction and its arguments, in order."""
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]  # type: ignore[misc]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_base_is_pinned_and_the_user_is_not_root(name: str) -> None:
    found = instructions(name)
    (base,) = (arguments for instruction, arguments in found if instruction == "FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", base)
    users = [arguments for instruction, arguments in found if instruction == "USER"]
    assert users and users[-1].isdigit() and users[-1] != "0"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_installation_needs_no_more_than_is_copied_before_it(name: str) -> None:
    found = instructions(name)
    before = found[: found.index(("RUN", ". scripts/setup.sh"))]
    copied = [
        source
        for instruction, arguments in before
        if instruction == "COPY"
        for source in arguments.split()[:-1]
    ]
    assert set(copied) == {
        "requirements.txt",
        "requirements",
        "scripts/setup.sh",
        "scripts/install.sh",
    }
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert not {source.partition("/")[0] for source in copied} & set(ignored)


def test_both_images_are_made_alike() -> None:
    cpu, gpu = (instructions(name) for name in DOCKERFILES)
    assert [line for line in gpu if not line[1].startswith("NVIDIA_")] == [
        (name, arguments.replace("ACCELERATOR=cpu", "ACCELERATOR=cuda")) for name, arguments in cpu
    ]


def test_compose_serves_as_kubernetes_does() -> None:
    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ].values()
    documents = yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text(encoding="utf-8"))
    (container,) = next(d for d in documents if d["kind"] == "Deployment")["spec"]["template"][
        "spec"
    ]["containers"]
    assert service["image"] == serve.IMAGE
    assert service["command"] == container["args"]
    limits = container["resources"]["limits"]
    assert (service["cpus"], service["mem_limit"].upper()) == (
        int(limits["cpu"]),
        limits["memory"].removesuffix("i"),
    )
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (
        service["read_only"]
        and service["cap_drop"] == ["ALL"]
        and not service["user"].startswith("0")
    )
    (volume,) = service["volumes"]
    assert (volume["target"], volume["read_only"]) == ("/models", True)


@pytest.mark.parametrize(("code", "expected"), [(200, 0), (404, 1)])
def test_the_container_is_healthy_when_the_model_answers(code: int, expected: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/v1/models/classifier/metadata" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (service,) = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ].values()
    kind, *line = service["healthcheck"]["test"]
    assert kind == "CMD"
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # As Docker Compose reads it: $$ stands for $.
        command = [
            word.replace("$$", "$").replace("127.0.0.1/8501", f"127.0.0.1/{server.server_port}")
            for word in line
        ]
        assert subprocess.run(command, timeout=20).returncode == expected
        server.shutdown()
