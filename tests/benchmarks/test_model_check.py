"""The models against their peers: bounds and failures.

Every check has its bound. The command fails where a bound is passed or a result is missing.
"""

import math

import pytest

from benchmarks.models import check
from cli.json_files import write_json

GOOD = {
    "timm": {
        "size": 64,
        "images": 4,
        "deviation": 1e-6,
        "spread": 0.5,
        "agreement": 0.9,
        "agreement_peer": 0.92,
    },
    "keras": {"size": 64, "images": 4, "deviation": 1e-6, "spread": 0.5},
    "gradients": {"deviation": 1e-4, "deviation_peer": 1e-4},
    "torchvision": {"size": 64, "images": 4, "deviation": 1e-6, "spread": 0.5},
    "torch": {"size": 32, "images": 4, "deviation": 1e-6, "spread": 0.5},
    "noise": {"draws": 100, "layers": 10, "standard_errors": 2.0},
    "files": {
        "keras_deviation": 0.0,
        "keras_seconds": 1.0,
        "saved_model_deviation": 0.0,
        "saved_model_seconds": 1.0,
    },
}


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Has a result for every check; no process makes another."""
    page = tmp_path / "page.md"
    page.write_text("<!-- checks: begin -->\n<!-- checks: end -->\n")
    monkeypatch.setattr(check, "MODELS", page)
    monkeypatch.setattr(
        check.subprocess, "run", lambda command, **_: check.subprocess.CompletedProcess(command, 1)
    )
    for name in check.CHECKS:
        write_json(
            tmp_path / f"{name}.json",
            {
                **GOOD[name.partition(":")[0]],
                **({"back_in_timm": 0.0} if name == "timm:b0" else {}),
            },
        )
    return tmp_path


def test_results_within_their_bounds_pass(workdir):
    check.main(str(workdir), None, None)
    assert "Past its bound" not in (workdir / "page.md").read_text()


def numbers():
    return [
        (name, key)
        for name in check.CHECKS
        if name.endswith((":b0", "50", "_2"))
        for key in check._bounds(name)
    ]


@pytest.mark.parametrize("value", ["large", "gone", math.nan])
@pytest.mark.parametrize(("name", "key"), numbers())
def test_each_number_can_fail(name, key, value):
    found = {**GOOD[name.partition(":")[0]], "back_in_timm": 0.0}
    stored = "agreement" if key == "agreement_lost" else key
    bad = 0.05 if key in ("spread", "agreement_lost") else 5.0
    found[stored] = bad if value == "large" else value
    if value == "gone":
        del found[stored]
    assert [line.partition(" is ")[0] for line in check._over_bounds({name: found})] == [
        f"{name}: {key}"
    ]


def test_the_command_fails_and_says_where(workdir, capsys):
    write_json(workdir / "keras:b3.json", {**GOOD["keras"], "deviation": 2e-5})
    with pytest.raises(SystemExit) as caught:
        check.main(str(workdir), None, None)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "FAILED keras:b3: deviation is 2e-05, not from 0 to 1e-05\n"
    assert "**Past its bound:** keras:b3: deviation" in (workdir / "page.md").read_text()


def test_a_check_without_a_result_fails(workdir, capsys):
    (workdir / "timm:b2.json").unlink()
    check.main(str(workdir), "timm:b1", None)
    with pytest.raises(SystemExit) as caught:
        check.main(str(workdir), None, None)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "FAILED timm:b2: no result\n"
