"""The export's folder: versions, settings, card; and `serving.predict` on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from cli.work_dirs import fingerprint
from serving import card, export, settings
from serving.answers import OK, TOO_LARGE
from serving.images import MAX_PIXELS
from serving.versions import load, require_version
from training import model_dir

from .conftest import NAMES, linear

ROOT = Path(__file__).parents[2]


def test_folder_and_summary(exported):
    path = exported.path
    summary = json.loads((path / "summary.json").read_text())
    assert summary["export"] == str(exported.version) and summary["label_names"] == list(NAMES)
    assert summary["name"] == "classifier" and 0 < summary["deviation"] < 1e-5
    encoded = {"image_bytes": {"dtype": "string", "shape": [None]}}
    pixels = {"images": {"dtype": "float32", "shape": [None, None, None, 3]}}
    answer = {
        "probabilities": {"dtype": "float32", "shape": [None, 7]},
        "classes": {"dtype": "int32", "shape": [None, 5]},
        "labels": {"dtype": "string", "shape": [None, 5]},
        "status": {"dtype": "int32", "shape": [None]},
    }
    width = exported.model.get_layer("avg_pool").output.shape[-1]
    embedding = {
        "embedding": {"dtype": "float32", "shape": [None, width]},
        "status": answer["status"],
    }
    prepared, given = {"dtype": "float32", "shape": [None, 16, 16, 3]}, answer["probabilities"]
    assert summary["signatures"] == {
        "serving_default": {"inputs": encoded, "outputs": answer},
        "predict_images": {"inputs": pixels, "outputs": answer},
        "predict_images_uint8": {
            "inputs": {"images": {**pixels["images"], "dtype": "uint8"}},
            "outputs": answer,
        },
        "embed": {"inputs": encoded, "outputs": embedding},
        "predict_prepared": {
            "inputs": {"images": prepared},
            "outputs": {"logits": given, "probabilities": given},
        },
    }
    assert (exported.version / "assets.extra" / "labels.txt").read_text(
        encoding="utf-8"
    ).splitlines() == list(NAMES)
    files = [
        "batching_parameters.txt",
        "classifier",
        "models.config",
        "monitoring.config",
        "summary.json",
    ]
    assert sorted(p.name for p in path.iterdir()) == files
    assert [p.name for p in (path / "classifier").iterdir()] == ["1"]


def test_card(small, write_model, tmp_path, monkeypatch):
    text = (small.version / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "`naïve 雪`" in text and "1,234 optimizer steps" in text and "top1 | 0.875" in text
    assert "## Intended use" in text and text.endswith("Apache-2.0.)\n")

    directory = write_model(tmp_path / "student", make=linear)
    monkeypatch.setattr(
        model_dir,
        "load",
        lambda path: (linear(model_dir.read_spec(path)), model_dir.read_spec(path)),
    )
    evaluated = {
        "split": "test",
        "examples": 4321,
        "models": {"other": {"top1": 0.5}, "student-2": {"top1": 0.625, "ece": 0.1}},
    }
    # As in the evaluation's config.json.
    measured = {"other": "0123456789abcdef", "student-2": fingerprint(directory)}
    write_json(tmp_path / "evaluation" / "config.json", {"models": measured})
    write_json(tmp_path / "evaluation" / "summary.json", evaluated)
    export.main(
        str(tmp_path / "w"),
        str(directory),
        evaluation=str(tmp_path / "evaluation"),
        license="CC BY 4.0",
        name="mine",
    )
    text = (tmp_path / "w" / "mine" / "1" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert (
        "4,321 images of the split `test`" in text
        and "top1 | 0.625" in text
        and text.endswith("CC BY 4.0\n")
    )

    write_json(tmp_path / "evaluation" / "summary.json", {**evaluated, "examples": 99})
    export.main(
        str(tmp_path / "w"), str(directory), evaluation=str(tmp_path / "evaluation"), name="mine"
    )
    again = (tmp_path / "w" / "mine" / "1" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert again == text.replace("4,321", "99")  # and the license stays
    export.main(str(tmp_path / "w"), str(directory), license="CC0", name="mine")
    assert (tmp_path / "w" / "mine" / "1" / "MODEL_CARD.md").read_text(
        encoding="utf-8"
    ) == again.replace("CC BY 4.0", "CC0")
    assert [p.name for p in (tmp_path / "w" / "mine").iterdir()] == ["1"]

    # The same name, but another model.
    namesake = write_model(tmp_path / "b" / "student-2", make=linear, seed=1)
    with pytest.raises(
        InputError,
        match=(
            r"no evaluation of .*b/student-2 as it is now; its models \(other, student-2\) are of"
        ),
    ):
        export.main(str(tmp_path / "w2"), str(namesake), evaluation=str(tmp_path / "evaluation"))
    write_json(directory / "summary.json", {"seed": 0, "steps": 2468})  # trained again
    with pytest.raises(InputError, match=r"no evaluation of .*student as it is now"):
        export.main(str(tmp_path / "w2"), str(directory), evaluation=str(tmp_path / "evaluation"))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ({"name": "b0", "width": None}, "EfficientNet-B0"),
        ({"name": "b6_wide"}, "EfficientNet-B6-Wide"),
        (
            {"name": "l2", "width": 0.5, "depth": 1.0, "dropout": 0.2},
            "EfficientNet-L2 (width 0.5, depth 1)",
        ),
        ({"name": "resnet50"}, "ResNet-50"),
        ({"name": "wrn_28_2"}, "Wide ResNet 28-2"),
    ],
)
def test_names_of_networks(architecture, name):
    assert card.network(architecture) == name


@pytest.mark.parametrize("file", ["summary.json", "config.json"])
def test_another_stages_directory_is_refused(small, tmp_path, file):
    write_json(tmp_path / "w" / file, {"export": "of a whole run"})
    with pytest.raises(InputError, match="work directory of another stage"):
        export.main(str(tmp_path / "w"), str(small.directory))
    assert [p.name for p in (tmp_path / "w").iterdir()] == [file]
    assert json.loads((tmp_path / "w" / file).read_text()) == {"export": "of a whole run"}


def test_again_says_done(exported, capsys):
    path = exported.path
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    export.main(str(path), str(exported.directory))
    assert "is done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def served(workdir):
    """Name on the server -> versions."""
    config = settings.read_models(workdir).model_config_list.config
    return {entry.name: list(entry.model_version_policy.specific.versions) for entry in config}


def test_goes_on_after_a_kill_and_counts_up(tmp_path, monkeypatch, write_model):
    """Kills the export while it writes, then between the rename and the summary.

    No half version is ever seen, and in the end there is one version.
    """
    directory = write_model(tmp_path / "teacher", names=("no", "yes"), make=linear)
    monkeypatch.setattr(
        model_dir,
        "load",
        lambda path: (linear(model_dir.read_spec(path)), model_dir.read_spec(path)),
    )
    workdir = tmp_path / "export"
    replace = os.replace

    def killed(source, target):
        if Path(target).name == "1":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        export.main(str(workdir), str(directory))
    assert not (workdir / "classifier" / "1").exists()
    with pytest.raises(InputError, match="no exported model"):
        require_version(workdir)

    monkeypatch.setattr(os, "replace", replace)
    export.main(str(workdir), f"{directory}/model")
    (workdir / "summary.json").unlink()
    written = (workdir / "classifier" / "1" / "saved_model.pb").stat().st_mtime_ns
    export.main(str(workdir), str(directory))
    assert (workdir / "classifier" / "1" / "saved_model.pb").stat().st_mtime_ns == written
    assert [p.name for p in (workdir / "classifier").iterdir()] == ["1"]
    # fewer than five classes: all of them
    assert json.loads((workdir / "summary.json").read_text())["signatures"]["serving_default"][
        "outputs"
    ]["classes"]["shape"] == [None, 2]
    assert served(workdir) == {"classifier": [1]}
    (workdir / "models.config").unlink()  # as the message about a damaged one says
    export.main(str(workdir), str(directory))
    assert served(workdir) == {"classifier": [1]}

    for seed in (1, 2):  # a folder that a server watches: the next number
        export.main(
            str(workdir),
            str(
                write_model(tmp_path / f"other{seed}", names=("no", "yes"), seed=seed, make=linear)
            ),
        )
        assert json.loads((workdir / "summary.json").read_text())["version"] == seed + 1
        assert require_version(workdir) == workdir / "classifier" / str(seed + 1)
        assert served(workdir) == {"classifier": [1], "classifier-canary": [seed + 1]}

    config = workdir / "models.config"
    config.write_text(config.read_text().replace("versions: 1", "versions: 2"))
    (workdir / "batching_parameters.txt").write_text("# mine\n")
    export.main(str(workdir), str(directory), name="second")
    # A person's choice stays.
    assert served(workdir) == {"classifier": [2], "classifier-canary": [3], "second": [1]}
    paths = [entry.base_path for entry in settings.read_models(workdir).model_config_list.config]
    assert paths == ["/models/classifier", "/models/classifier", "/models/second"]
    assert (workdir / "batching_parameters.txt").read_text() == "# mine\n"
    with pytest.raises(InputError, match="several models"):
        require_version(workdir)


def test_refused(exported, tmp_path):
    unfinished = shutil.copytree(exported.directory, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    for directory, match in [
        (unfinished, "not finished"),
        (unfinished / "model", "not a finished"),
        (tmp_path / "none", "does not exist"),
    ]:
        with pytest.raises(InputError, match=match):
            export.main(str(tmp_path / "w"), str(directory))
    for options, match in [
        ({"name": "a/b"}, "part of a URL"),
        ({"name": "a-canary"}, "names that end in -canary"),
        ({"weights": "int4"}, "float32, bfloat16, float16"),
    ]:
        with pytest.raises(InputError, match=match):
            export.main(str(tmp_path / "w"), str(exported.directory), **options)
    assert not (tmp_path / "w").exists()
    (tmp_path / "w" / "classifier").mkdir(parents=True)
    (tmp_path / "w" / "models.config").write_text("model_config_list { oops }")
    with pytest.raises(InputError, match=r"models\.config cannot be parsed"):
        settings.read_models(tmp_path / "w")


def linear_load(path):
    """Stands in for `model_dir.load`, for models that `linear` made."""
    return linear(model_dir.read_spec(path)), model_dir.read_spec(path)


def test_the_limit_on_pixels_is_the_exports(
    small, tmp_path, monkeypatch, write_model, encoded_images, capsys
):
    """It is stored with the version and stated in its card; the same limit is the same version."""
    monkeypatch.setattr(model_dir, "load", linear_load)
    directory, workdir = write_model(tmp_path / "teacher", make=linear), tmp_path / "export"
    for _ in range(2):
        export.main(str(workdir), str(directory), max_pixels=1200)
    assert "is done" in capsys.readouterr().out
    images = [encoded_images("PNG", (40, 30), n=1)[0], encoded_images("JPEG", (41, 30), n=1)[0]]
    loaded = tf.saved_model.load(str(require_version(workdir)))
    answer = loaded.signatures["serving_default"](image_bytes=tf.constant(images))
    assert answer["status"].numpy().tolist() == [OK, TOO_LARGE]
    for path, limit in [(require_version(workdir), 1200), (small.version, MAX_PIXELS)]:
        assert (
            json.loads((path / "assets.extra" / "export.json").read_text())["max_pixels"] == limit
        )
        assert f"accepts up to {limit:,} pixels" in (path / "MODEL_CARD.md").read_text(
            encoding="utf-8"
        )
    assert f"{MAX_PIXELS:,}" in (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def test_a_model_of_nan_is_not_exported(tmp_path, monkeypatch, write_model):
    def load(path):
        model, spec = linear_load(path)
        model.layers[-1].bias.assign(np.full(len(spec.label_names), np.nan))
        return model, spec

    monkeypatch.setattr(model_dir, "load", load)
    directory = write_model(tmp_path / "teacher", make=linear)
    with pytest.raises(InputError, match="answers with NaN or infinity"):
        export.main(str(tmp_path / "export"), str(directory), weights="bfloat16")
    assert not (tmp_path / "export" / "classifier" / "1").exists()


def test_predict_in_a_fresh_process(tmp_path, imagenet, encoded_images):
    files = [tmp_path / "picture.png", tmp_path / "ein Foto ü.jpeg"]
    encoded = [encoded_images("PNG", n=1)[0], encoded_images("JPEG", n=1)[0]]
    for file, content in zip(files, encoded):
        file.write_bytes(content)
    line = [
        sys.executable,
        "-m",
        "cli",
        "predict",
        f"--model={imagenet.path}",
        "--format=json",
        *map(str, files),
    ]
    done = subprocess.run(
        line,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["file"] for answer in answers] == [str(file) for file in files]
    for answer, row in zip(answers, imagenet.evaluate(encoded)):
        assert answer["label"] == NAMES[row.argmax()]
        np.testing.assert_allclose(
            [p for _, p in answer["top"]], np.sort(row)[::-1][:5], atol=1e-5, rtol=0
        )
        assert answer["probability"] == answer["top"][0][1]


def test_warm_up_requests_parse_and_run(small):
    from tensorflow_serving.apis import prediction_log_pb2

    path = small.version / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "classifier"
        signature = request.model_spec.signature_name
        images = tf.make_ndarray(request.inputs["image_bytes"])
        answer = small.serve(signature, image_bytes=tf.constant(images.tolist()))
        assert (answer["status"] == 0).all()
        seen.append((signature, len(images)))
    assert seen == [
        (signature, size)
        for signature in ("serving_default", "embed")
        for size in settings.ALLOWED_BATCH_SIZES
    ]


def test_changed_files_are_refused(small, tmp_path, capsys):
    version = shutil.copytree(small.version, tmp_path / "1")
    for name in (
        "saved_model.pb",
        "variables/variables.data-00000-of-00001",
        "assets.extra/labels.txt",
    ):
        whole = (version / name).read_bytes()
        (version / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        with pytest.raises(InputError, match=rf"{name} differs \(SHA-256\); .* run_export.sh"):
            load(version)
        (version / name).write_bytes(whole)
    (version / "assets.extra" / "labels.txt").unlink()
    with pytest.raises(InputError, match=r"labels.txt is missing"):
        load(version)
    described = json.loads((version / "assets.extra" / "export.json").read_text())
    del described["sha256"]  # as earlier versions wrote it
    write_json(version / "assets.extra" / "export.json", described)
    load(version)
    assert (
        "cannot be verified: its assets.extra/export.json states no digests"
        in capsys.readouterr().err
    )


def test_a_directory_named_with_characters_of_patterns(small, tmp_path):
    version = shutil.copytree(small.version, tmp_path / "set [v1] {a,b} *" / "1")
    image = tf.io.encode_png(tf.zeros([9, 9, 3], tf.uint8))[tf.newaxis]
    answer = load(version).signatures["serving_default"](image_bytes=image)["probabilities"]
    np.testing.assert_array_equal(answer, small.serve(image_bytes=image)["probabilities"])
