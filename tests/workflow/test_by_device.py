"""The machine decides network and resolution; a line says so, and a begun run keeps them."""

import pytest

from cli import recipes
from cli.errors import InputError
from cli.json_files import write_json
from workflow import by_device, loop, one_method

RECIPES = [
    f"configs/{name}/image_folder.py"
    for name in ("noisy_student", "supervised", "uda", "fixmatch", "meta_pseudo_labels")
]
ON_GPU = ["--config.init=imagenet:b0", "--config.preprocessing.image_size=224"]


@pytest.fixture(autouse=True)
def _machine(monkeypatch):
    """Pretends that a GPU and the weights are here."""
    monkeypatch.setattr(by_device.gpus, "count", lambda: 1)
    monkeypatch.setattr(by_device.pretrained, "find", lambda name, model: None)


def settled(directory, *flags, name=RECIPES[0], init=None):
    words = [f"--config={name}", *flags]
    config, more = by_device.settle(recipes.from_flags(*words), words, directory, init)
    assert more[: len(words)] == words
    return (config.init, config.preprocessing.image_size), more[len(words) :]


@pytest.mark.parametrize("name", RECIPES)
def test_a_gpu_takes_b0_and_a_cpu_lite0(tmp_path, monkeypatch, capsys, name):
    assert settled(tmp_path, name=name) == (("imagenet:b0", 224), ON_GPU)
    assert recipes.from_flags(f"--config={name}", *ON_GPU).init == "imagenet:b0", (
        "the stages get it by flag"
    )
    assert capsys.readouterr().out.startswith(
        "network: imagenet:b0 at 224 px, since TensorFlow sees a GPU; "
    )
    monkeypatch.setattr(by_device.gpus, "count", lambda: 0)
    assert settled(tmp_path, name=name) == (("efficientnet-lite0", 160), [])
    assert (
        capsys.readouterr().out
        == "network: efficientnet-lite0 at 160 px, since TensorFlow sees no GPU\n"
    )


@pytest.mark.parametrize(
    ("name", "flags", "init"),
    [
        (f"{RECIPES[0]}:lite0", [], None),
        (f"{RECIPES[0]}:small", [], None),
        (RECIPES[0], [], "advprop:b1"),
        (RECIPES[0], ["--config.init=efficientnet-lite0"], None),
        (RECIPES[0], ["--config.preprocessing.image_size=128"], None),
        (RECIPES[0], ["--config.teacher.model.dropout=0.1"], None),
        (RECIPES[0], ["--config.smoke=True"], None),
        (f"{RECIPES[2]}:wrn_28_2", [], None),
        ("configs/noisy_student/digits.py", [], None),
    ],
)
def test_who_has_chosen_is_not_asked(tmp_path, capsys, name, flags, init):
    config = recipes.from_flags(f"--config={name}", *flags)
    assert settled(tmp_path, *flags, name=name, init=init) == (
        (config.init, config.preprocessing.image_size),
        [],
    )
    assert not capsys.readouterr().out


def test_a_begun_run_keeps_its_network(tmp_path, monkeypatch, capsys):
    config = recipes.from_flags(f"--config={RECIPES[0]}", *ON_GPU)
    write_json(tmp_path / "config.json", loop.resolved(config, {}))
    monkeypatch.setattr(by_device.gpus, "count", lambda: 0)
    assert settled(tmp_path) == (("imagenet:b0", 224), ON_GPU)
    assert f"as {tmp_path} began" in capsys.readouterr().out
    write_json(
        tmp_path / "config.json", loop.resolved(recipes.from_flags(f"--config={RECIPES[0]}"), {})
    )
    monkeypatch.setattr(by_device.gpus, "count", lambda: 1)
    assert settled(tmp_path) == (("efficientnet-lite0", 160), [])


def test_weights_that_cannot_be_had_leave_lite0(tmp_path, monkeypatch, capsys):
    def find(name, model):
        raise InputError(f"{name}: no network; put the file there")

    monkeypatch.setattr(by_device.pretrained, "find", find)
    assert settled(tmp_path) == (("efficientnet-lite0", 160), [])
    assert "although TensorFlow sees a GPU: imagenet:b0: no network" in capsys.readouterr().out


def test_the_commands_of_all_stages_ask(tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def settle(config, flags, workdir, init, *, dry_run):
        raise Asked(init)

    monkeypatch.setattr(by_device, "settle", settle)
    options = {
        "strategy": "auto",
        "tpu": "",
        "iterations": None,
        "dry_run": False,
        "beam_options": [],
    }
    with pytest.raises(Asked, match="None"):
        loop.main(
            recipes.from_flags(f"--config={RECIPES[0]}"), str(tmp_path), None, None, None, **options
        )
    with pytest.raises(Asked, match="advprop:b1"):
        one_method.run_stages(
            recipes.from_flags(f"--config={RECIPES[2]}"),
            str(tmp_path),
            {},
            {"init": "advprop:b1"},
            [],
        )
