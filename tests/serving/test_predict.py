"""`serving.predict`: its lines, and what it says where it cannot answer.

The model is a few operations, not a network.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.errors import InputError
from data.preprocessing import Preprocessing
from serving import answers, predict
from serving.answers import NOT_FINITE, OK, Answer
from serving.images import prepare
from serving.rows import Rows, digest_of
from serving.versions import require_version

ROOT = Path(__file__).parents[2]
COLORS = ("red", "green", "blue", "$x_1$")


class MeanColor(tf.Module):
    """Calls an image red, green or blue by its mean channels."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        images, status = prepare(image_bytes, Preprocessing(image_size=8))
        means = tf.reduce_mean(images, axis=[1, 2])
        probabilities = tf.nn.softmax(tf.pad(means, [[0, 0], [0, 1]]) / 50)
        classes = tf.math.top_k(probabilities, 4).indices
        return {
            "probabilities": probabilities,
            "classes": classes,
            "labels": tf.gather(tf.constant(COLORS), classes),
            "status": status,
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Makes a folder with versions 2 and 10, and an entry that is not a version."""
    folder = tmp_path_factory.mktemp("models")
    module = MeanColor()
    for version in ("2", "10"):
        tf.saved_model.save(
            module, str(folder / version), signatures={"serving_default": module.serve}
        )
    (folder / "11").mkdir()
    (folder / ".export.tmp").mkdir()
    return folder


def write_image(path, color):
    file = io.BytesIO()
    PIL.Image.new("RGB", (9, 7), color).save(file, "PNG")
    path.write_bytes(file.getvalue())
    return str(path)


def test_highest_version_is_taken(model):
    assert require_version(model) == model / "10"
    assert require_version(model / "2") == model / "2"


def test_a_line_for_each_image(model, tmp_path, capsys):
    files = [write_image(tmp_path / f"{color}.png", color) for color in ("red", "lime", "blue")]
    predict.main(str(model), "text", files)
    lines = capsys.readouterr().out.splitlines()
    probability = np.exp(255 / 50) / (np.exp(255 / 50) + 3)
    for line, file, label in zip(lines, files, COLORS):
        assert line.startswith(f"{file}: {label} {100 * probability:.1f} %")
        assert line.count(",") == 2  # the top 3
    assert len(lines) == 3


def test_a_name_stays_on_one_line(model, tmp_path, capsys):
    """Tests that each image has one line, whatever its file is called.

    Columns stay columns, and the error has one line, too.
    """
    good = write_image(tmp_path / "line\nbreak 花.png", "red")
    bad = tmp_path / "\x1b[2Jcar\rriage\u2028.jpg"
    bad.write_bytes(b"no image")
    for format, good_end in [("text", ": red "), ("table", "  red ")]:
        with pytest.raises(InputError, match=r"\(.*\\x1b\[2Jcar\\rriage\\u2028\.jpg\)") as caught:
            predict.main(str(model), format, [good, str(bad)])
        first, second = capsys.readouterr().out.splitlines()
        assert "line\\nbreak 花.png" in first and good_end in first
        assert (
            "\\x1b[2Jcar\\rriage\\u2028.jpg" in second and len(str(caught.value).splitlines()) == 1
        )
        assert format == "text" or first.index("red") == second.index("not a JPEG")
    with pytest.raises(InputError, match=r"a\\nb does not exist") as caught:
        predict.main(str(model), "text", ["a\nb"])
    answer = Answer("a\nb", OK, [("l\nabel", 0.5)])
    assert (
        answers.line(answer, "text").startswith("a\\nb: l\\nabel 50.0 %")
        and len(answers.line(answer, "table").splitlines()) == 1
    )
    # Programs get the name itself.
    assert json.loads(answers.line(answer, "json"))["file"] == "a\nb"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_none(model, tmp_path, value):
    """Tests older exports, which give NaN with status 0."""

    def serve(encoded):
        ones = np.ones([len(encoded), 1])
        return {
            "status": [0],
            "probabilities": value * ones,
            "classes": [[0]],
            "labels": [[b"red"]],
        }

    (answer,) = predict.predict(serve, [write_image(tmp_path / "a.png", "red")])
    assert answer.status == NOT_FINITE
    assert json.loads(answers.line(answer, "json")).keys() == {"file", "error"}


def test_batches_keep_the_order(model, tmp_path):
    files = [write_image(tmp_path / f"{i}.png", ("red", "lime", "blue")[i % 3]) for i in range(7)]
    predictions = list(predict.predict(predict.load(model), files, batch_size=3))
    assert [p.file for p in predictions] == files
    assert [p.top[0][0] for p in predictions] == [COLORS[i % 3] for i in range(7)]


def test_a_file_that_is_no_image_is_named(model, tmp_path, capsys):
    good = [write_image(tmp_path / f"{i}.png", "red") for i in range(2)]
    bad = {"text.jpg": b"hello", "empty.png": b"", "cut.png": Path(good[0]).read_bytes()[:40]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    files = [good[0], *(str(tmp_path / name) for name in bad), good[1]]
    with pytest.raises(
        InputError, match=r"3 of 5 images could not be used \(.*text.jpg and 2 more\)"
    ):
        predict.main(str(model), "json", files)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["file"] for answer in answers] == files
    assert [answer.get("label") for answer in answers] == ["red", None, None, None, "red"]
    assert all("JPEG, PNG, BMP or GIF" in answer["error"] for answer in answers[1:4])
    with pytest.raises(InputError, match="3 of 3"):
        predict.main(str(model), "table", files[1:4])
    # The reasons form a column.
    assert len({line.index("not a JPEG") for line in capsys.readouterr().out.splitlines()}) == 1


@pytest.mark.parametrize(
    ("name", "format", "files", "match"),
    [
        ("", "text", ["missing.png"], "missing.png does not exist"),
        ("", "text", ["empty"], "empty holds no images"),
        ("", "text", ["pipe"], "pipe is not a regular file"),
        ("", "text", ["a" * 300], "does not exist"),
        ("", "text", [], "no images"),
        ("", "yaml", ["red.png"], "--format"),
        ("nowhere", "text", ["red.png"], "does not exist"),
        ("11", "text", ["red.png"], "no exported model"),
        ("broken", "text", ["red.png"], "cannot be loaded"),
        (
            "other",
            "text",
            ["red.png"],
            "has no image_bytes, probabilities, classes, labels, status",
        ),
    ],
)
def test_wrong_usage(model, tmp_path, name, format, files, match):
    write_image(tmp_path / "red.png", "red")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    if name == "broken":
        (model / name).mkdir()
        (model / name / "saved_model.pb").write_bytes(b"not a model")
    if name == "other":
        tf.saved_model.save(tf.Module(), str(model / name))
    with pytest.raises(InputError, match=match) as caught:
        predict.main(str(model / name), format, [str(tmp_path / file) for file in files])
    assert "\n" not in str(caught.value)


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_an_image_that_exif_turns_is_read_as_stored_with_a_note(model, tmp_path, capsys):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (9, 7), "red").save(tmp_path / "camera.jpg", exif=exif)
    files = [write_image(tmp_path / "red.png", "red"), str(tmp_path / "camera.jpg")]
    predict.main(str(model), "text", files)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert [line for line in err.splitlines() if line.startswith("note: ")] == [
        f"note: {files[1]}: EXIF asks to turn or mirror the image; its pixels are read as stored,"
        " as in training"
    ]


def test_exit_code_and_one_line(model, tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("text.jpg", "missing.png"):
        done = run("-m", "cli", "predict", f"--model={model}", str(tmp_path / name))
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


def test_needs_no_training_code(model, tmp_path):
    """Tests that a prediction on the command line imports TensorFlow, but nothing heavy beside it.

    Wrong usage does not even import TensorFlow.
    """
    file = write_image(tmp_path / "red.png", "red")
    heavy = (
        "{'apache_beam', 'tensorflow_addons', 'keras_cv', 'tensorflow_datasets', 'sklearn',"
        " 'matplotlib', 'training', 'data'}"
    )
    code = f"""
import sys
from serving import predict
assert "tensorflow" not in sys.modules
predict.main({str(model)!r}, "text", [{file!r}])
assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)
"""
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_folders_and_globs(model, tmp_path, capsys):
    """A folder stands for the images that training would find below it."""
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/deep/2.png", "b/1.png", "a.png", ".hidden.png"):
        write_image(tmp_path / name, "red")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    write_image(tmp_path / "b" / "unnamed", "blue")  # its first bytes tell
    predict.main(str(model), "csv", [str(tmp_path)])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = [os.path.relpath(row["file"], tmp_path) for row in rows]
    assert found == ["a.png", "b/1.png", "b/deep/2.png", "b/unnamed"]
    assert [row["label"] for row in rows] == ["red", "red", "red", "blue"]
    assert (
        abs(
            sum(
                float(rows[0][name])
                for name in ("confidence", "confidence_2", "confidence_3", "confidence_4")
            )
            - 1
        )
        < 1e-5
    )
    assert rows[0]["label_5"] == rows[0]["error"] == ""
    assert predict.find_image_files("text", [str(tmp_path / "**" / "*.png")]) == [
        str(tmp_path / name) for name in found[:3]
    ]
    with pytest.raises(InputError, match="matches no files"):
        predict.find_image_files("text", [str(tmp_path / "*.jpg")])
    with pytest.raises(InputError, match="parquet is not text"):
        predict.find_image_files("parquet", [str(tmp_path)])


def test_an_image_comes_from_stdin(model, tmp_path, capsys, monkeypatch):
    write_image(tmp_path / "blue.png", "blue")
    content = (tmp_path / "blue.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    predict.main(str(model), "csv", ["-"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["file"], row["label"]) == ("-", "blue")
    with pytest.raises(InputError, match="named twice"):
        predict.find_image_files("text", ["-", "-"])


def red_or_no_image(encoded):
    """Stands in for a model: PNG files are red."""
    good = np.array([image[:4] == b"\x89PNG" for image in encoded])
    probabilities = good[:, np.newaxis] * np.array([[0.7, 0.2, 0.1]])
    labels = [[b"red", b"green", b"blue"]] * len(encoded)
    return {
        "status": 1 - good,
        "probabilities": probabilities,
        "classes": [[0, 1, 2]] * len(encoded),
        "labels": labels,
    }


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours catches it."""


@pytest.mark.parametrize("format", ["csv", "jsonl", "table", "parquet"])
def test_a_killed_command_goes_on(tmp_path, monkeypatch, format):
    files = [
        write_image(tmp_path / f"{i:02}\n.png", ("red", "lime", "blue")[i % 3]) for i in range(11)
    ]
    (tmp_path / "03\n.png").write_bytes(b"no image")
    monkeypatch.setattr(predict, "BATCH_SIZE", 4)
    asked: list[int] = []

    def answers(serve, names, stop=99):
        for number, answer in enumerate(predict.predict(serve, names, 4)):
            if number == stop:
                raise Killed
            asked.append(number)
            yield answer

    def save(output, **options):
        predict.save(
            lambda names: answers(red_or_no_image, names, **options),
            format,
            files,
            str(output),
            "model",
        )

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with pytest.raises(InputError, match=r"1 of 11 images could not be used"):
        save(whole)
    with pytest.raises(Killed):
        save(killed, stop=6)
    with open(tmp_path / "killed.part", "ab") as part:
        part.write(b"half a ro")
    assert not killed.exists()
    asked.clear()
    with pytest.raises(InputError, match=r"1 of 11 images could not be used \(.*03\\n.png\)"):
        save(killed)
    assert len(asked) == 7  # the first batch of 4 was whole
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("killed.*"))
    if format == "csv":
        with open(killed, newline="") as file:
            assert [row["file"] for row in csv.DictReader(file)] == files
    with pytest.raises(InputError, match="exists; delete it"):
        save(killed)


def test_rows_of_another_request_are_refused(tmp_path):
    files = [write_image(tmp_path / f"{i}.png", "red") for i in range(2)]
    rows = Rows(str(tmp_path / "out"), "csv", digest_of("one", "csv", files))
    rows.add([Answer(files[0], OK, [("red", 1.0)])])
    with pytest.raises(InputError, match="another process writes"):
        Rows(str(tmp_path / "out"), "csv", digest_of("one", "csv", files)).add([])
    rows.close()
    with pytest.raises(InputError, match="belongs to another model, format or set of images"):
        Rows(str(tmp_path / "out"), "csv", digest_of("two", "csv", files))
    Path(files[1]).write_bytes(b"replaced")
    with pytest.raises(InputError, match="belongs to another model, format or set of images"):
        Rows(str(tmp_path / "out"), "csv", digest_of("one", "csv", files))


def test_parquet_has_the_columns_of_csv(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    files = [write_image(tmp_path / "a.png", "red"), str(tmp_path / "b.png")]
    Path(files[1]).write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 2"):
        predict.save(
            lambda names: predict.predict(red_or_no_image, names),
            "parquet",
            files,
            str(tmp_path / "out.parquet"),
            "model",
        )
    first, second = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (first["file"], first["label"], first["error"]) == (files[0], "red", None) and first[
        "confidence"
    ] > 0.5
    assert (second["label"], second["confidence"]) == (None, None) and "JPEG" in second["error"]


def test_images_of_other_kinds_are_converted(tmp_path, capsys):
    image = PIL.Image.new("RGB", (9, 7), "red")
    image.save(tmp_path / "a.webp", lossless=True)
    image.quantize(2).save(tmp_path / "b.bmp")
    for name in ("a.webp", "b.bmp"):
        encoded = predict.read(str(tmp_path / name))
        assert PIL.Image.open(io.BytesIO(encoded)).format == "PNG"
        assert PIL.Image.open(io.BytesIO(encoded)).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert capsys.readouterr().err == ""
    cut = (tmp_path / "a.webp").read_bytes()[:30]
    (tmp_path / "c.webp").write_bytes(cut)
    assert predict.read(str(tmp_path / "c.webp")) == cut
    assert f"note: {tmp_path / 'c.webp'}: it is WebP and cannot be read" in capsys.readouterr().err
