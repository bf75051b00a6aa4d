"""`run_serve.sh`: which server it takes, with which flags, and what it says where there is none.

No server is started.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from cli.errors import InputError
from serving import serve

ROOT = Path(__file__).parents[2]

# Flags of `tensorflow_model_server` 2.15.1, as its --help lists them. docs/serving.md explains the
# flags that we use.
KNOWN = frozenset(
    """
allow_version_labels_for_unavailable_models batching_parameters_file enable_batching \
enable_grpc_healthcheck_service
enable_model_warmup enable_per_model_batching_parameters enable_profiler \
enable_signature_method_name_check
file_system_poll_wait_seconds flush_filesystem_caches grpc_channel_arguments grpc_max_threads \
grpc_socket_path
load_retry_interval_micros max_num_load_retries mixed_precision model_base_path model_config_file \
model_config_file_poll_wait_seconds
model_name monitoring_config_file num_load_threads num_request_iterations_for_warmup \
num_tflite_interpreters_per_pool num_tflite_pools
num_unload_threads per_process_gpu_memory_fraction platform_config_file port prefer_tflite_model
remove_unused_fields_from_bundle_metagraph rest_api_enable_cors_support rest_api_num_threads \
rest_api_port rest_api_timeout_in_ms
saved_model_tags skip_initialize_tpu ssl_config_file tensorflow_inter_op_parallelism \
tensorflow_intra_op_parallelism
tensorflow_session_config_file tensorflow_session_parallelism thread_pool_factory_config_file \
use_alts_credentials version
xla_cpu_compilation_enabled
""".split()  # noqa: SIM905 (a list with a name a line would be half of this file)
)

MODELS = """# a comment
model_config_list { config { name: "classifier" base_path: "/models/classifier" \
model_platform: "tensorflow"
  model_version_policy { specific { versions: 1 } } version_labels { key: "stable" value: 1 } } }
"""
PROGRAM = """#!/bin/sh
[ "$1" = info ] && exit {status}
echo "$0" "$@"
"""


@pytest.fixture
def serving_dir(tmp_path):
    folder = tmp_path / "my models"
    folder.mkdir()
    (folder / "models.config").write_text(MODELS)
    return folder


def arguments(serving_dir, **options):
    defaults = {
        "host": "127.0.0.1",
        "rest_port": 8501,
        "grpc_port": 8500,
        "image": serve.IMAGE,
        "local": False,
        "nobatching": False,
    }
    return {"serving_dir": str(serving_dir), **defaults, **options}


def programs(folder, **statuses):
    """Returns a PATH with stand-ins; `statuses` has the status of their `info` by name."""
    folder.mkdir(exist_ok=True)
    for name, status in statuses.items():
        (folder / name).write_text(PROGRAM.format(status=status))
        (folder / name).chmod(0o755)
    return str(folder)


def run(path, serving_dir, *flags):
    """Runs it in its own process; the server takes the process's place."""
    command = [sys.executable, "-m", "cli", "serve", f"--serving_dir={serving_dir}", *flags]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=120
    )


def flags_of(line):
    return {
        flag.partition("=")[0][2:]: flag.partition("=")[2] for flag in line if flag.startswith("--")
    }


@pytest.mark.parametrize("batching", [True, False])
def test_binary_takes_known_flags_only(serving_dir, batching):
    line = serve.command(
        serving_dir, "0.0.0.0", 1234, 5678, serve.IMAGE, batching, "tensorflow_model_server"
    )
    flags = flags_of(line[1:])
    assert set(flags) <= KNOWN and len(flags) == len(line) - 1
    assert (flags["rest_api_port"], flags["port"]) == ("1234", "5678")
    assert flags["model_config_file"] == f"{serving_dir}/.models.config"
    assert flags["monitoring_config_file"] == f"{serving_dir}/monitoring.config"
    assert (flags.get("enable_batching"), flags.get("batching_parameters_file")) == (
        ("true", f"{serving_dir}/batching_parameters.txt") if batching else (None, None)
    )


@pytest.mark.parametrize("program", ["docker", "podman"])
def test_container_is_bound_to_the_host_alone(serving_dir, program):
    line = serve.command(serving_dir, "127.0.0.1", 1234, 5678, serve.IMAGE, True, program)
    image = line.index("docker.io/tensorflow/serving:2.15.1")
    assert line[: image + 1] == [
        *(
            program,
            "run",
            "--rm",
            "--init",
            "--publish=127.0.0.1:5678:8500",
            "--publish=127.0.0.1:1234:8501",
        ),
        *(f"--volume={serving_dir}:/models:ro", "docker.io/tensorflow/serving:2.15.1"),
    ]
    flags = flags_of(line[image + 1 :])
    assert set(flags) <= KNOWN
    assert flags["model_config_file"] == "/models/models.config"
    assert flags["batching_parameters_file"] == "/models/batching_parameters.txt"
    assert "--publish=[::1]:5678:8500" in serve.command(
        serving_dir, "::1", 1234, 5678, serve.IMAGE, True, program
    )


def test_order_and_exec(serving_dir, tmp_path):
    everything = programs(tmp_path / "all", tensorflow_model_server=0, docker=0, podman=0)
    done = run(everything, serving_dir, "--host=0.0.0.0")
    assert done.returncode == 0, done.stderr
    shown, executed = done.stdout.splitlines()
    assert shown.startswith("== tensorflow_model_server --port=8500 --rest_api_port=8501 ")
    assert executed.startswith(f"{tmp_path}/all/tensorflow_model_server --port=8500 ")
    config = text_format.Parse(
        (serving_dir / ".models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    # Absolute, as the server demands.
    assert config.model_config_list.config[0].base_path == f"{serving_dir}/classifier"

    # Docker's program without its daemon.
    containers = programs(tmp_path / "containers", docker=1, podman=0)
    done = run(containers, serving_dir)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(
        f"{tmp_path}/containers/podman run --rm --init --publish=127.0.0.1:8500:8500 "
    )


def test_binary_is_not_opened_to_everybody_by_default(serving_dir, tmp_path):
    done = run(programs(tmp_path / "bin", tensorflow_model_server=0), serving_dir)
    assert (done.returncode, done.stdout) == (2, "")
    assert "listens on every interface" in done.stderr and len(done.stderr.splitlines()) == 1


def test_without_a_server_it_says_how_to_get_one(serving_dir, tmp_path):
    done = run(programs(tmp_path / "none", docker=1), serving_dir)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("error: no tensorflow_model_server on PATH")
        and len(done.stderr.splitlines()) == 1
    )
    assert "--local" in done.stderr and "docs/serving.md" in done.stderr


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"host": "example"}, "--host"),
        ({"rest_port": 0}, "--rest_port"),
        ({"rest_port": 66000}, "--rest_port"),
        ({"grpc_port": 8501}, "must differ"),
    ],
)
def test_wrong_usage(serving_dir, options, match):
    with pytest.raises(InputError, match=match):
        serve.main(**arguments(serving_dir, **options))


def test_nothing_exported(tmp_path):
    with pytest.raises(InputError, match=r"holds no models\.config"):
        serve.main(**arguments(tmp_path))


def test_the_manual_explains_every_flag_that_is_used(serving_dir):
    manual = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    line = serve.command(serving_dir, "0.0.0.0", 1, 2, serve.IMAGE, True, "tensorflow_model_server")
    assert all(f"`--{flag}`" in manual for flag in flags_of(line))
    assert serve.IMAGE.removeprefix("docker.io/") in manual


def test_kubernetes_manifest():
    """Tests its shape against the schemas of Kubernetes, where a validator is installed.

    Else only its own consistency is tested.
    """
    yaml = pytest.importorskip("yaml")
    documents = list(
        yaml.safe_load_all((ROOT / "docs" / "kubernetes.yaml").read_text(encoding="utf-8"))
    )
    kinds = {document["kind"]: document for document in documents}
    (container,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == serve.IMAGE
    assert set(flags_of(container["args"])) <= KNOWN
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in kinds["Service"]["spec"]["ports"]} == ports
    try:
        import kubernetes_validate
    except ImportError:
        return
    for document in documents:
        kubernetes_validate.validate(document, "1.32", strict=True)


def test_script_is_there():
    assert shutil.which(str(ROOT / "run_serve.sh"))
