"""A list of corrected labels, given to the next run, raises its score."""

import csv

import numpy as np
import PIL.Image

from cli import recipes
from cli.json_files import read_json
from data import pipeline, prepare, records
from tests import networks
from training import model_dir
from workflow import train

FLAGS = [
    "--config=configs/noisy_student/image_folder.py:b0",
    "--config.preprocessing.image_size=16",
    "--config.preprocessing.randaugment_layers=0",
    "--config.data.labeled_as_unlabeled=all",
    "--config.teacher.ema_decay=0.8",
    "--config.teacher.schedule.base=0.16",
    *(f"--config.teacher.{key}" for key in ("steps=40", "epochs=None", "batch_size=8")),
    f"--config.teacher.model.name={networks.NAME}",
]
COLORS = {"blue": (0, 0, 120), "red": (120, 0, 0)}


def images(folder, colors, first, shown_as=None):
    """Writes 20 images of noise of each color.

    An image goes into the class of its color, or into that which `shown_as` gives for its number.
    """
    rng = np.random.default_rng(first)
    for name, color in colors.items():
        for number in range(20):
            path = folder / (shown_as or {}).get((name, number), name) / f"{name}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray((rng.integers(0, 120, (20, 20, 3)) + color).astype(np.uint8)).save(
                path
            )


def top1(workdir, **flags):
    """Returns the top-1 of a run's model on the test images."""
    config = recipes.from_flags(*FLAGS)
    prepare.main(config, str(workdir / "data"), **flags)
    train.main(config, str(workdir / "model"), str(workdir / "data"), section="teacher")
    model, spec = model_dir.load(workdir / "model")
    manifest = records.read_manifest(workdir / "data" / "test", "labeled")
    right = [
        float(weight) * (np.argmax(logits) == label)
        for batch in pipeline.eval_batches(manifest, 8, spec.preprocessing).as_numpy_iterator()
        for logits, label, weight in zip(
            model(batch["image"]).numpy(), batch["label"], batch["weight"]
        )
    ]
    assert read_json(workdir / "model" / "summary.json", dict)["steps"] == 40
    return sum(right) / manifest.num_records


def test_a_corrected_list_raises_the_score(tmp_path):
    """Makes three quarters of the labels wrong, so the first run learns the opposite."""
    wrong = {
        (name, number): other
        for name, other in (("blue", "red"), ("red", "blue"))
        for number in range(15)
    }
    images(tmp_path / "labeled", COLORS, 0, wrong)
    images(tmp_path / "test", COLORS, 1)
    folders = {"labeled": str(tmp_path / "labeled"), "test": str(tmp_path / "test")}
    before = top1(tmp_path / "before", **folders)
    with open(tmp_path / "corrected.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label"])
        rows.writerows(
            [f"labeled/{other}/{name}_{number}.png", name]
            for (name, number), other in wrong.items()
        )
    after = top1(tmp_path / "after", **folders, labels=str(tmp_path / "corrected.csv"))
    assert before < 0.5 < 0.9 < after
