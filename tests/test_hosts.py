"""Tests the starts of a training on several machines: TF_CONFIG and flags of each worker."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.training_runs import ROOT

yaml = pytest.importorskip("yaml")
SHOWS = '#!/usr/bin/env bash\nprintf "%s\\n" "$TF_CONFIG" | tr -d "\\n"; printf "\\n%s\\n" "$*"\n'


def scripts(directory: Path, **contents: str) -> dict[str, str]:
    """Writes stand-ins for programs; returns an environment that finds them first."""
    for name, text in contents.items():
        path = directory / name.replace("__", ".")
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


def config(hosts: list[str], index: int) -> dict[str, Any]:
    """Returns what TF_CONFIG must hold."""
    return {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (143, True)])
def test_slurm(tmp_path: Path, code: int, requeued: bool) -> None:
    """Stand-ins list two machines and start two tasks; srun ends with the workers' code."""
    environment = scripts(
        tmp_path,
        scontrol=(
            "#!/usr/bin/env bash\n"
            'if [[ $1 == requeue ]]; then echo "requeue $2"; else printf "a1\\na2\\n"; fi\n'
        ),
        srun=(
            "#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\n"
            f'for i in 0 1; do SLURM_PROCID=$i "$@"; done; exit {code}\n'
        ),
        stage=SHOWS,
    )
    environment |= {"SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": "7", "STAGE": "stage"}
    command = [str(ROOT / "scripts" / "slurm.sh"), "--config=c", "--workdir=with space"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    lines = done.stdout.splitlines()
    assert [json.loads(line) for line in lines[0:4:2]] == [
        config(["a1:12345", "a2:12345"], index) for index in (0, 1)
    ]
    assert lines[1] == "--strategy=multi_worker --config=c --workdir=with space"
    assert lines[4:] == (["requeue 7"] if requeued else [])


def test_kubernetes(tmp_path: Path) -> None:
    """Checks the schemas, too, where a validator is installed."""
    text = (ROOT / "docs" / "kubernetes_training.yaml").read_text(encoding="utf-8")
    kinds = {document["kind"]: document for document in yaml.safe_load_all(text)}
    job, service = kinds["Job"], kinds["Service"]
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    count = str(job["spec"]["completions"])
    assert container["env"] == [{"name": "WORKERS", "value": count}]
    assert job["spec"]["parallelism"] == int(count)
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    environment = scripts(tmp_path, run_student__sh=SHOWS)
    environment |= {"WORKERS": count, "JOB_COMPLETION_INDEX": "1"}
    command = [*container["command"], *container["args"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said, flags = done.stdout.splitlines()
    name = f"{job['metadata']['name']}-%d.{service['metadata']['name']}:12345"
    assert json.loads(said) == config([name % 0, name % 1], 1)
    assert flags.startswith("--strategy=multi_worker --config=configs/noisy_student/imagenet.py:b7")
    try:
        import kubernetes_validate
    except ImportError:
        return
    for document in kinds.values():
        kubernetes_validate.validate(document, "1.32", strict=True)
