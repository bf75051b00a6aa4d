"""ImageNet's released layouts in small: A, C, P and ReaL with a third-party SavedModel.

Runs are resumed, and read meanwhile.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import ml_collections
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from cli.errors import InputError
from cli.json_files import write_json
from data import protos, records
from evaluation import evaluate, imagenet, predict, results, robustness
from evaluation.examples import read_video
from evaluation.imagenet import A_CLASSES
from tests.evaluation.images import png

WNIDS = imagenet.wnids()
CLASSES = [6, 11, 13]  # of ImageNet-A, so that all suites can use them
SIDE = 16
needs_opencv = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None,
    reason="ImageNet-P's videos need opencv-python-headless",
)


def image(i):
    """Returns noise in which one of the three colors is strong."""
    rng = np.random.Generator(np.random.PCG64(i))
    strength = np.where(np.arange(3) == rng.integers(3), 255, 120)
    return (rng.random((20, 24, 3)) * strength).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path, "PNG")


class Network(tf.Module):
    """Answers by the image's mean color; stands in for a network of 1,000 classes."""

    def __init__(self):
        super().__init__()
        weights = np.random.Generator(np.random.PCG64(0)).normal(size=(3, 1000)).astype(np.float32)
        weights[:, CLASSES] = 4 * np.eye(3)
        self.kernel = tf.Variable(weights)

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="pixels")])
    def serve(self, pixels):
        return {"logits": (tf.reduce_mean(pixels, [1, 2]) / 16 - 5) @ self.kernel}


def expected_answers(encoded_images, style):
    preprocessing = predict.Preprocessing(image_size=SIDE, style=style)
    pixels = tf.stack([predict.eval_image(encoded, preprocessing) for encoded in encoded_images])
    network = Network()  # its own name: a traced method holds its object weakly
    return network.serve(pixels)["logits"].numpy()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "network"
    network = Network()
    tf.saved_model.save(network, str(directory), signatures=network.serve)
    return directory


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A, two corruptions of C (one in its tar's folder, one without), and one of the extra four."""
    root = tmp_path_factory.mktemp("released")
    for n, label in enumerate(CLASSES):
        for i in range(2):
            save(root / "a" / WNIDS[label] / f"{i}.jpg", image(10 * n + i))
            for place in ("noise/gaussian_noise", "fog", "extra/spatter"):
                for severity in robustness.SEVERITIES:
                    save(
                        root
                        / "c"
                        / place
                        / str(severity)
                        / WNIDS[label]
                        / f"ILSVRC2012_val_{n}{i}.JPEG",
                        image(100 * n + 10 * i + severity),
                    )
    return root


def run(workdir, model, suite, values=None, **places):
    config = ml_collections.ConfigDict({"evaluate": {"batch_size": 4, **(values or {})}}).lock()
    evaluate.main(
        config,
        str(workdir),
        str(model),
        suite=suite,
        **{name: str(path) for name, path in places.items()},
    )
    return json.loads((workdir / "summary.json").read_text())["models"]["network"]


def files(folder):
    return [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()]


def test_imagenet_a_by_both_protocols(model, released, tmp_path):
    row = run(tmp_path / "w", model, "a", data_a=released / "a")["a"]
    logits = expected_answers(files(released / "a"), "imagenet")
    labels = np.repeat(CLASSES, 2)
    assert row["examples"] == 6
    assert row["top1"] == pytest.approx(
        np.mean(A_CLASSES[logits[:, A_CLASSES].argmax(1)] == labels)
    )
    assert row["top1_of_1000"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert 1 > row["top1"] > 0
    assert row["top5"] >= row["top1"] >= row["top1_of_1000"]
    stored = results.load(tmp_path / "w" / "network" / "a.npz")
    assert set(stored["top5"].ravel()) <= set(A_CLASSES.tolist())
    np.testing.assert_array_equal(stored["top5_of_all"][:, 0], logits.argmax(1))


@pytest.mark.parametrize(("whole_image", "style"), [(True, "small"), (False, "imagenet")])
def test_imagenet_c(model, released, tmp_path, whole_image, style):
    row = run(tmp_path / "w", model, "c", {"whole_image": whole_image}, data_c=released / "c")["c"]
    for corruption, place in (
        ("gaussian_noise", "noise/gaussian_noise"),
        ("fog", "fog"),
        ("spatter", "extra/spatter"),
    ):
        for severity in robustness.SEVERITIES:
            answers = expected_answers(files(released / "c" / place / str(severity)), style).argmax(
                1
            )
            assert row["errors"][corruption][severity - 1] == pytest.approx(
                np.mean(answers != np.repeat(CLASSES, 2))
            )
    ce = [
        100 * sum(row["errors"][c]) / sum(robustness.ALEXNET_ERRORS[c])
        for c in ("gaussian_noise", "fog")
    ]
    assert row["reference"] == "AlexNet" and "mce" not in row
    assert row["mce_of_part"] == pytest.approx(np.mean(ce))  # spatter is apart
    assert row["mean_error"] == pytest.approx(
        np.mean([row["errors"]["gaussian_noise"], row["errors"]["fog"]])
    )


def test_c_goes_on_after_the_last_finished_set(model, released, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", model, "c", data_c=released / "c")
    real = predict.predict

    def interrupted(*arguments, **keywords):
        for number, result in enumerate(real(*arguments, **keywords)):
            if number == 7:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(predict, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "w", model, "c", data_c=released / "c")
    lines = [
        json.loads(line) for line in (tmp_path / "w" / "progress.jsonl").read_text().splitlines()
    ]
    assert [line["set"] for line in lines] == [
        *(f"gaussian_noise-{s}" for s in range(1, 6)),
        "fog-1",
        "fog-2",
    ]
    assert all(0 <= line["error"] <= 1 and line["examples"] == 6 for line in lines)
    assert not (tmp_path / "w" / "summary.json").exists()

    pending = []
    monkeypatch.setattr(
        predict,
        "predict",
        lambda c, sets, *rest: pending.extend(e.name for e in sets) or real(c, sets, *rest),
    )
    assert run(tmp_path / "w", model, "c", data_c=released / "c") == whole
    assert pending == [*(f"fog-{s}" for s in (3, 4, 5)), *(f"spatter-{s}" for s in range(1, 6))]


def test_sets_follow_each_other_within_a_batch(model, released, monkeypatch):
    sets = [
        examples
        for severities in imagenet.imagenet_c(released / "c").values()
        for examples in severities.values()
    ]
    batches = list(
        predict.image_batches(sets, 4, predict.input_pixels(predict.Preprocessing(image_size=SIDE)))
    )
    assert len(batches) == -(-15 * 6 // 4)  # 23; set by set it would be 30
    assert sum(int((batch["set"] >= 0).numpy().sum()) for batch in batches) == 90


def write_validation(directory, keys):
    examples = [
        protos.make_example(png(image(i)), key, CLASSES[i % 3] + 1) for i, key in enumerate(keys)
    ]
    records.write_split(
        directory / "validation",
        "validation",
        examples,
        1,
        len(keys),
        kind="labeled",
        label_names=WNIDS,
        label_offset=1,
    )
    write_json(directory / "summary.json", {})
    return directory


def test_real_is_joined_by_name(model, tmp_path):
    order = [4, 1, 5, 2, 3]  # not that of the file
    data = write_validation(
        tmp_path / "data", [f"ILSVRC2012_val_{number:08d}.JPEG" for number in order]
    )
    answers = expected_answers([png(image(i)) for i in range(5)], "imagenet").argmax(1)
    lists = [[0], [int(answers[3]), 7], [], [int(answers[0])], [1]]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    row = run(
        tmp_path / "w",
        model,
        "real",
        data=data,
        split="validation",
        data_real=tmp_path / "real.json",
    )
    right = [
        answers[place] in lists[number - 1]
        for place, number in enumerate(order)
        if lists[number - 1]
    ]
    assert row["real"]["precision"] == pytest.approx(np.mean(right)) and sum(right) >= 2
    assert (row["real"]["examples"], row["real"]["without_labels"]) == (4, 1)
    assert row["examples"] == 5


def test_real_needs_names_and_a_list(tmp_path):
    (tmp_path / "real.json").write_text("[[1]]")
    with pytest.raises(InputError, match="cannot be joined"):
        imagenet.real_labels(tmp_path / "real.json", ["ILSVRC2012_val_00000002"])
    with pytest.raises(InputError, match="cannot be joined"):
        imagenet.real_labels(tmp_path / "real.json", ["photo"])
    (tmp_path / "real.json").write_text("{}")
    with pytest.raises(InputError, match="list of lists"):
        imagenet.real_labels(tmp_path / "real.json", [])
    with pytest.raises(InputError, match="cannot be read"):
        imagenet.real_labels(tmp_path / "nothing.json", [])


def test_videos_without_opencv_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="ImageNet-P needs opencv-python-headless"):
        read_video(tmp_path / "a.mp4")


@needs_opencv
def test_imagenet_p(model, tmp_path):
    import cv2

    frames = 5
    for perturbation in ("gaussian_noise", "tilt"):
        for n, label in enumerate(CLASSES[:2]):
            path = tmp_path / "p" / perturbation / WNIDS[label] / f"video{n}.mp4"
            path.parent.mkdir(parents=True)
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (32, 32))
            for i in range(frames):
                writer.write(
                    np.full([32, 32, 3], [40 * i, 120, 250 - 50 * i * n], np.uint8)
                )  # blue, green, red
            writer.release()
    row = run(tmp_path / "w", model, "p", data_p=tmp_path / "p")["p"]
    for perturbation in ("gaussian_noise", "tilt"):
        answers = results.load(tmp_path / "w" / "network" / "p" / f"{perturbation}.npz")["answers"]
        assert answers.shape == (2, frames)
        for n in range(2):
            pictures = imagenet.read_video(
                tmp_path / "p" / perturbation / WNIDS[CLASSES[n]] / f"video{n}.mp4"
            )
            assert np.abs(pictures[0].mean((0, 1)) - [250, 120, 0]).max() < 12  # red comes first
            np.testing.assert_array_equal(
                expected_answers([png(p) for p in pictures], "small").argmax(1), answers[n]
            )
        assert row["flips"][perturbation] == pytest.approx(
            robustness.flips(answers, "noise" in perturbation).mean()
        )
    rates = [
        100 * row["flips"][p] / robustness.ALEXNET_FLIPS[p] for p in ("gaussian_noise", "tilt")
    ]
    assert row["mfr_of_part"] == pytest.approx(np.mean(rates)) and "mfr" not in row
    with pytest.raises(InputError, match="can be decoded, not 6"):
        imagenet.read_video(next((tmp_path / "p").rglob("*.mp4")), frames + 1)


def test_layouts_that_are_not_whole(released, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        imagenet.imagenet_a(tmp_path / "a")
    with pytest.raises(InputError, match="none of ImageNet-C"):
        imagenet.imagenet_c(released / "a")
    with pytest.raises(InputError, match="none of ImageNet-P"):
        imagenet.imagenet_p(released / "a", 1)
    save(tmp_path / "c" / "fog" / "1" / WNIDS[0] / "x.png", image(0))
    with pytest.raises(InputError, match="lacks severity 2"):
        imagenet.imagenet_c(tmp_path / "c")
    save(tmp_path / "a" / WNIDS[0] / "x.png", image(0))
    with pytest.raises(InputError, match="is not one of ImageNet-A's"):
        imagenet.imagenet_a(tmp_path / "a")
    save(tmp_path / "b" / "cats" / "x.png", image(0))
    with pytest.raises(InputError, match="WordNet"):
        imagenet.imagenet_a(tmp_path / "b")


def test_unusable_flags_leave_nothing(model, released, tmp_path):
    for match, suite, places in (
        ("--suite=d", "d", {}),
        ("--data_a is missing", "a", {}),
        ("--data is missing", "clean", {}),
        ("--data is missing", "adversarial,c", {"data_c": released / "c"}),
        ("none of ImageNet-C", "c", {"data_c": released / "a"}),
    ):
        with pytest.raises(InputError, match=match):
            run(tmp_path / "w", model, suite, **places)
    for key, value in (
        ("difficulty", 4),
        ("norm", "1"),
        ("pgd_step", 0.0),
        ("fgsm_epsilons", ()),
        ("color", 1),
        ("baseline", "nobody"),
    ):
        with pytest.raises(InputError, match=f"evaluate.*{key}"):
            run(tmp_path / "w", model, "a", {key: value}, data_a=released / "a")
    assert not (tmp_path / "w").exists()
