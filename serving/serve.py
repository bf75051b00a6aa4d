"""Starts a server for a SERVING_DIR: `run_serve.sh`.

    ./run_serve.sh --serving_dir=SERVING_DIR [--host=127.0.0.1] [--rest_port=8501] \
        [--grpc_port=8500] [--cors] [--local [--nobatching] [--log_requests=DIR]]

The server is `tensorflow_model_server` from PATH, else the official container through docker or
podman. Its command is printed, and takes this process's place. A container publishes its ports on
`--host` alone. `tensorflow_model_server` has no flag for that: it listens on every interface. So it
is started only where `--host=0.0.0.0` says that this is meant. `--local` is the server for
development (`serving.local`).
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from cli.errors import InputError
from serving import BATCHING, MONITORING, MOUNT
from serving.versions import BARE_CONFIG, MODELS_CONFIG, bare_config

IMAGE = "docker.io/tensorflow/serving:2.15.1"
BINARY, CONTAINERS = "tensorflow_model_server", ("docker", "podman")
EVERYWHERE = "0.0.0.0"

HOW_TO_GET_ONE = (
    f"no {BINARY} on PATH, and neither docker nor podman runs here; install one of them"
    " (docs/serving.md), or add --local for a server for development"
)


def main(
    serving_dir: str,
    host: str,
    rest_port: int,
    grpc_port: int,
    image: str,
    local: bool,
    nobatching: bool,
    cors: bool = False,
    log_requests: str | None = None,
) -> None:
    """Becomes the server; see the module.

    Raises:
      InputError: unusable flags, nothing exported, or no server to be had.
    """
    address = _address(host)
    ports = [
        _port(name, number, local)
        for name, number in (("rest_port", rest_port), ("grpc_port", grpc_port))
    ]
    if ports[0] == ports[1] != 0:
        raise InputError("--rest_port and --grpc_port must differ")
    folder = Path(serving_dir).expanduser().resolve()
    if not (folder / MODELS_CONFIG).is_file():
        raise InputError(
            f"--serving_dir: {folder} holds no {MODELS_CONFIG}; make it with run_export.sh"
        )
    if local:
        from serving.local import serve  # loads TensorFlow

        log = Path(log_requests).expanduser().resolve() if log_requests else None
        serve(folder, address, ports[1], ports[0], not nobatching, cors=cors, log_requests=log)
        return
    if log_requests:
        raise InputError(
            "--log_requests is for --local; TF Serving's own logging needs a collector that is"
            " compiled in"
        )
    line = command(folder, address, ports[0], ports[1], image, not nobatching, find())
    if cors:
        line.append("--rest_api_enable_cors_support=true")
    if line[0] == BINARY:
        bare_config(folder)
    print(f"== {shlex.join(line)}", flush=True)
    os.execvp(line[0], line)


def find() -> str:
    """Returns the first that works of `tensorflow_model_server`, `docker` and `podman`.

    Raises InputError where none does.
    """
    if shutil.which(BINARY):
        return BINARY
    for program in CONTAINERS:
        if shutil.which(program):
            try:  # docker's program may be there without its daemon
                done = subprocess.run(
                    [program, "info"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20
                )
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return program
    raise InputError(HOW_TO_GET_ONE)


def command(
    folder: Path,
    host: str,
    rest_port: int,
    grpc_port: int,
    image: str,
    batching: bool,
    program: str,
) -> list[str]:
    """Returns the command line of `program` that serves `folder`.

    Raises:
      InputError: `program` is the bare binary, and `host` is not every interface.
    """
    if program == BINARY:
        if host != EVERYWHERE:
            raise InputError(
                f"{BINARY} listens on every interface and has no flag for {host}; say"
                f" --host={EVERYWHERE} where that is meant (behind a firewall), or take it off PATH"
                " to use a container, or add --local for a server for development"
            )
        ports = [f"--port={grpc_port}", f"--rest_api_port={rest_port}"]
        return [BINARY, *ports, *_settings(folder, f"{folder}/{BARE_CONFIG}", batching)]
    if ":" in str(folder):
        raise InputError(
            f"--serving_dir: a container can't be given a path with a colon ({folder}); move or"
            " link it"
        )
    published = f"[{host}]" if ":" in host else host
    ports = [f"--publish={published}:{grpc_port}:8500", f"--publish={published}:{rest_port}:8501"]
    container = [program, "run", "--rm", "--init", *ports, f"--volume={folder}:{MOUNT}:ro", image]
    return [*container, *_settings(Path(MOUNT), f"{MOUNT}/{MODELS_CONFIG}", batching)]


def _settings(folder: Path, models: str, batching: bool) -> list[str]:
    flags = [
        f"--model_config_file={models}",
        "--model_config_file_poll_wait_seconds=30",  # labels and versions follow the file
        # Without it, labels of versions that are still loading are refused at the start.
        "--allow_version_labels_for_unavailable_models=true",
        f"--monitoring_config_file={folder}/{MONITORING}",
    ]
    return (
        [*flags, "--enable_batching=true", f"--batching_parameters_file={folder}/{BATCHING}"]
        if batching
        else flags
    )


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text.strip("[]")))
    except ValueError as error:
        raise InputError(
            f"--host is {text!r}; it must be an address, such as 127.0.0.1 or 0.0.0.0"
        ) from error


def _port(name: str, port: int, local: bool) -> int:
    if not (0 if local else 1) <= port <= 65535:
        raise InputError(
            f"--{name} is {port}; it must be a port from 1 to 65535"
            + (", or 0 for a free one" if local else "")
        )
    return port
