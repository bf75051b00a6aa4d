"""A second teacher labels one selection again.

The digits' pool is compared with brute force. Unusable inputs are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression

from cli import recipes
from cli.errors import InputError
from cli.json_files import read_json, write_json
from data import index, prepare
from data.preprocessing import Preprocessing
from data.protos import make_example, make_prediction
from data.records import read_manifest, verify_split, write_manifest, write_split
from data.verification import read_records
from evaluation import history
from training.copies import Copies
from training.method import IMAGES
from training.model_dir import ModelSpec
from workflow import balance, label_shards, methods, pseudo_label, relabel, shard_jobs, train
from workflow.join import first_copies

SEED, SIDE, BAND = 3, 8, (0.4, 0.9)
NAMES = tuple(str(digit) for digit in range(10))


def config() -> ConfigDict:
    settings = [
        f"--config.seed={SEED}",
        f"--config.balance.threshold={BAND[0]}",
        f"--config.balance.max_confidence={BAND[1]}",
    ]
    shards = [
        "--config.data.num_shards=3",
        "--config.data.out_of_domain=30",
        "--config.pseudo_label.views=0",
    ]
    return recipes.from_flags("--config=configs/noisy_student/digits.py", *settings, *shards)


def rows(directory: Path) -> list[dict[str, tf.train.Feature]]:
    """Returns the features of a split's records, in order; read by TensorFlow alone."""
    paths = sorted(str(path) for path in directory.glob("*-of-?????"))
    records = tf.data.TFRecordDataset(paths).as_numpy_iterator()
    return [dict(tf.train.Example.FromString(record).features.feature) for record in records]


def key_of(row: dict[str, tf.train.Feature]) -> str:
    return row["image/key"].bytes_list.value[0].decode()


def pixels(split: list[dict[str, tf.train.Feature]]) -> np.ndarray:
    """Returns float64 [N, 64], from 0 to 1."""
    images = [
        tf.io.decode_png(row["image/encoded"].bytes_list.value[0], 1).numpy() for row in split
    ]
    return np.stack([image.reshape(-1) / 255.0 for image in images])


def stored(directory: Path) -> dict[str, np.ndarray]:
    """Returns key -> the teacher's distribution, float32 [10], of the float16 numbers on disk."""
    found = {}
    for row in rows(directory):
        values = np.frombuffer(row["probabilities_float16"].bytes_list.value[0], "<f2").astype(
            np.float32
        )
        assert key_of(row) not in found
        found[key_of(row)] = values / np.float32(values.sum(dtype=np.float64))
    return found


def brute_force(answers: dict[str, np.ndarray]) -> tuple[dict[str, int], int]:
    """Selects by sorting lists: key -> copies, and the images that each class is to have."""

    def hash_of(key: str) -> int:
        return int.from_bytes(
            hashlib.blake2b(key.encode(), digest_size=8, key=str(SEED).encode()).digest(), "little"
        )

    by_class: dict[int, list[str]] = {}
    for key, p in answers.items():
        if BAND[0] < p.max() <= np.float32(np.float16(BAND[1])):
            by_class.setdefault(int(p.argmax()), []).append(key)
    per_class = int(np.median([len(keys) for keys in by_class.values()]))
    copies = {}
    for keys in by_class.values():
        kept = sorted(keys, key=lambda key: (-answers[key].max(), hash_of(key)))[:per_class]
        for place, key in enumerate(sorted(kept, key=hash_of)):
            copies[key] = per_class // len(kept) + (place < per_class % len(kept))
    return copies, per_class


def teacher(x: np.ndarray, y: np.ndarray) -> tuple[tf.keras.Model, LogisticRegression]:
    """Returns logistic regression on pixels as a network, and as scikit-learn's."""
    fitted = LogisticRegression(max_iter=300).fit(x, y)
    inputs = tf.keras.Input([SIDE, SIDE, 3])
    dense = tf.keras.layers.Dense(10)
    model = tf.keras.Model(inputs, dense(tf.keras.layers.Flatten()(inputs[..., :1] / 255.0)))
    dense.set_weights([fitted.coef_.T, fitted.intercept_])
    return model, fitted


@pytest.fixture(name="walk", scope="module")
def _walk(tmp_path_factory: pytest.TempPathFactory):
    """Runs two iterations on the digits.

    A teacher of 50 images selects. A teacher of 400 images labels that set again. Returns the
    directory and the second teacher.
    """
    root, settings = tmp_path_factory.mktemp("relabel"), config()
    prepare.main(settings, str(root / "data"))
    preprocessing = Preprocessing(image_size=SIDE)
    spec = ModelSpec(architecture={}, preprocessing=preprocessing, label_names=NAMES)
    for number, split in ((1, "labeled"), (2, "test")):
        images = rows(root / "data" / split)
        labels = np.array([row["image/class/label"].int64_list.value[0] for row in images])
        model, fitted = teacher(pixels(images), labels)
        write_json(root / f"teacher_{number}" / "summary.json", {})
        selection = str(root / "pseudo_labeled_1") if number == 2 else None
        given = {"data": str(root / "data"), "selection": selection}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                pseudo_label.model_dir, "load", lambda directory, model=model: (model, spec)
            )
            patch.setattr(pseudo_label.model_dir, "read_spec", lambda directory: spec)
            pseudo_label.main(
                settings,
                str(root / f"predictions_{number}"),
                teacher=str(root / f"teacher_{number}"),
                **given,
            )
        balance.main(
            settings,
            str(root / f"pseudo_labeled_{number}"),
            predictions=str(root / f"predictions_{number}"),
            **given,
        )
    return root, fitted


def test_two_iterations_on_the_digits_are_what_sorting_gives(walk):
    root, second = walk
    copies, per_class = brute_force(stored(root / "predictions_1"))
    images = {key_of(row): row for row in rows(root / "data" / "unlabeled")}
    order = [key for key in images for _ in range(copies.get(key, 0))]
    assert max(copies.values()) > 1 and len(copies) < len(images) and len(order) == 10 * per_class
    first, again = rows(root / "pseudo_labeled_1"), rows(root / "pseudo_labeled_2")
    assert [key_of(row) for row in first] == [key_of(row) for row in again] == order
    # The second teacher labels each selected image once, and no other.
    answers = stored(root / "predictions_2")
    assert list(answers) == list(dict.fromkeys(order))
    expected = dict(zip(images, second.predict_proba(pixels(list(images.values())))))
    assert index.indexed(read_manifest(root / "pseudo_labeled_1")) and index.indexed(
        read_manifest(root / "pseudo_labeled_2")
    )
    for row in again:
        key = key_of(row)
        assert row["image/encoded"] == images[key]["image/encoded"]
        np.testing.assert_allclose(row["probabilities"].float_list.value, expected[key], atol=1e-3)
        assert row["label"].int64_list.value[0] == answers[key].argmax()


def test_the_summary_counts_images_and_copies(walk):
    root, _ = walk
    before = {
        key_of(row): row["label"].int64_list.value[0] for row in rows(root / "pseudo_labeled_1")
    }
    copies = Counter(key_of(row) for row in rows(root / "pseudo_labeled_1"))
    answers = {key: int(p.argmax()) for key, p in stored(root / "predictions_2").items()}
    summary = read_json(root / "pseudo_labeled_2" / "summary.json")
    assert summary["selected"] == [
        sum(n for key, n in copies.items() if before[key] == k) for k in range(10)
    ]
    assert summary["total"] == [
        sum(n for key, n in copies.items() if answers[key] == k) for k in range(10)
    ]
    assert summary["unique"] == [sum(answers[key] == k for key in copies) for k in range(10)]
    assert summary["changed"] == sum(answers[key] != before[key] for key in copies) > 0
    assert (summary["num_unique"], summary["num_records"]) == (len(copies), sum(copies.values()))
    assert (root / "pseudo_labeled_2" / "pseudo_labels.png").read_bytes().startswith(b"\x89PNG")
    shown = dict(history.pseudo_labels(root))
    captions = [caption for _, _, caption in shown["charts"]]
    assert (
        captions[1].startswith(f"The same {len(copies):,} images")
        and f"{summary['changed']:,} of them" in captions[1]
    )
    assert shown["round"] == "2" and len(shown["filtered_out"]) > 0


def test_labels_beside_images_are_labeled_again_to_the_same_set(walk, tmp_path):
    """Tests that with `copy_images=False`, joined records have the features of the copied records.

    This holds in both iterations.
    """
    root, _ = walk
    settings = config().copy_and_resolve_references()
    settings.balance.copy_images = False
    data, one, two = str(root / "data"), root / "pseudo_labeled_1", root / "pseudo_labeled_2"
    balance.main(settings, str(tmp_path / "first"), data, str(root / "predictions_1"))
    first = read_manifest(tmp_path / "first", "pseudo_labeled")
    copied = read_manifest(one, "pseudo_labeled")
    assert (
        first.records == copied.records
        and first.beside.images.directory == root / "data" / "unlabeled"
    )
    assert read_json(tmp_path / "first" / "summary.json") == read_json(one / "summary.json")
    taken = [first_copies(first, shard) for shard in range(3)]
    assert [row.sum() for row in taken] == [first_copies(copied, shard).sum() for shard in range(3)]
    pool = [key_of(row) for row in rows(root / "data" / "unlabeled")]
    chosen = np.flatnonzero(np.concatenate(taken))
    assert [pool[i] for i in chosen] == list(dict.fromkeys(key_of(row) for row in rows(one)))
    # The predictions of the copied form name it as their origin.
    shutil.copytree(root / "predictions_2", tmp_path / "predictions")
    manifest = read_manifest(tmp_path / "predictions")
    write_manifest(dataclasses.replace(manifest, extra={**manifest.extra, "images": first.digest}))
    relabel.main(str(tmp_path / "again"), str(tmp_path / "first"), str(tmp_path / "predictions"))
    again = read_manifest(tmp_path / "again", "pseudo_labeled")
    for labels in (first, again):
        verify_split(labels)
        assert index.indexed(labels)  # so several hosts read their parts alone
    for beside, whole in ((first, copied), (again, read_manifest(two))):
        for shard in range(3):
            for record, expected in zip(read_records(beside, shard), read_records(whole, shard)):
                got, wanted = (
                    dict(tf.train.Example.FromString(one).features.feature)
                    for one in (record, expected)
                )
                assert all(got[name] == wanted[name] for name in wanted)
    assert read_json(tmp_path / "again" / "summary.json") == read_json(two / "summary.json")
    assert sum(path.stat().st_size for path in (tmp_path / "again").glob("*-of-*")) < sum(
        path.stat().st_size for path in two.glob("*-of-*")
    )


def test_an_interrupted_run_ends_with_the_same_bytes(walk, tmp_path, monkeypatch):
    root, _ = walk
    given = (str(root / "pseudo_labeled_1"), str(root / "predictions_2"))
    run = relabel.RelabelShards.run

    def killed(job, shard):
        if shard == 1:
            raise KeyboardInterrupt
        return run(job, shard)

    with monkeypatch.context() as patch:
        patch.setattr(relabel.RelabelShards, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            relabel.main(str(tmp_path / "w"), *given)
    assert not (tmp_path / "w" / "summary.json").exists()
    relabel.main(str(tmp_path / "w"), *given)
    for path in (root / "pseudo_labeled_2").glob("*"):
        if path.name != "config.json":
            assert (tmp_path / "w" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "w" / "progress").exists()
    monkeypatch.setattr(shard_jobs, "run", lambda *arguments: pytest.fail("done again"))
    relabel.main(str(tmp_path / "w"), *given)


def test_a_set_that_was_labeled_again_is_labeled_again(walk, tmp_path):
    """Tests that the same predictions are refused, since their origin is another set.

    With a set of that origin, the same bytes come.
    """
    root, _ = walk
    with pytest.raises(
        InputError,
        match=r"predictions_2 was not made from the shards that .*pseudo_labeled_2 has now; "
        r"run .* on --selection=",
    ):
        relabel.main(
            str(tmp_path / "w"), str(root / "pseudo_labeled_2"), str(root / "predictions_2")
        )
    with pytest.raises(InputError, match=r"predictions_1 was not made from .*pseudo_labeled_1"):
        relabel.main(
            str(tmp_path / "w"), str(root / "pseudo_labeled_1"), str(root / "predictions_1")
        )
    with pytest.raises(InputError, match="predictions_2 was not made from"):
        balance.main(config(), str(tmp_path / "w"), str(root / "data"), str(root / "predictions_2"))
    assert not (tmp_path / "w").exists()


def write(root: Path, keys: list[str], predicted: list[str]) -> None:
    sure = np.eye(2, dtype=np.float32)
    records = (make_example(key[0].encode(), key, probabilities=sure[0]) for key in keys)
    write_split(
        root / "set",
        "pseudo_labeled",
        records,
        1,
        len(keys),
        kind="pseudo_labeled",
        label_names="ab",
    )
    records = (make_prediction(key, sure[1], 0) for key in predicted)
    write_split(
        root / "predictions",
        "predictions",
        records,
        1,
        len(predicted),
        kind="predictions",
        label_names="ab",
    )
    for name in ("set", "predictions"):
        write_json(root / name / "summary.json", {})


@pytest.mark.parametrize(
    ("keys", "predicted", "message"),
    [
        (
            ["x", "x", "y", "x"],
            ["x", "y"],
            r"pseudo_labeled-00000-of-00001: copies of image x do not stand side by side",
        ),
        (
            ["x", "y"],
            ["x"],
            r"predictions-00000-of-00001: no prediction for image y of .*pseudo_labeled-00000",
        ),
        (
            ["x", "x"],
            ["x", "y"],
            r"there is a prediction for y, but .*pseudo_labeled-00000-of-00001 has no such image",
        ),
        (["x", "y"], ["x", "x", "y"], r"image key x appears twice"),
    ],
)
def test_what_does_not_join_is_refused(tmp_path, keys, predicted, message):
    write(tmp_path, keys, predicted)
    with pytest.raises(InputError, match=message):
        relabel.main(str(tmp_path / "w"), str(tmp_path / "set"), str(tmp_path / "predictions"))
    assert not (tmp_path / "w" / "manifest.json").exists()


def test_the_images_of_a_selection_train_other_methods_too(walk):
    """Uses the selection as the pool of Meta Pseudo Labels (Section 4).

    Its 130 million images are those of Noisy Student.
    """
    root, _ = walk
    method = methods.find("uda")
    assert method.unlabeled({}) == IMAGES
    section = {"unlabeled_ratio": 1}
    opened = train.open_inputs(
        method, {"train": section}, str(root / "data"), selection=str(root / "pseudo_labeled_1")
    )
    assert opened.unlabeled == read_manifest(root / "pseudo_labeled_1")
    values = ConfigDict({"method": "supervised"})
    with pytest.raises(
        InputError, match="--selection has no effect on teacher, which trains by supervised"
    ):
        train._require_inputs(
            methods.find("supervised"), values, "teacher", {"selection": "d"}, None
        )
    train._require_inputs(method, ConfigDict({"method": "uda"}), "train", {"selection": "d"}, None)


def test_a_selection_without_its_summary_is_refused(walk, tmp_path):
    root, _ = walk
    shutil.copytree(root / "pseudo_labeled_1", tmp_path / "set")
    (tmp_path / "set" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"--selection .*set is not finished"):
        relabel.main(str(tmp_path / "w"), str(tmp_path / "set"), str(root / "predictions_2"))


def test_a_balanced_set_as_a_pool_is_told_where_it_belongs(walk, tmp_path):
    root, _ = walk
    settings = config().copy_and_resolve_references()
    settings.data.update({"source": "tfrecord", "labeled": str(root / "data" / "labeled")})
    settings.data.unlabeled = str(root / "pseudo_labeled_1" / "pseudo_labeled-*")
    with pytest.raises(
        InputError,
        match=(
            r"two images have the key digits/.*--selection=.*/pseudo_labeled_1 of"
            r" run_pseudo_label\.sh"
        ),
    ):
        prepare.main(settings, str(tmp_path / "data"))


def test_an_error_of_the_device_is_not_blamed_on_images_beside_their_labels(walk, tmp_path):
    """Tests that the image shard is read again to find a broken record.

    It has as many records as its own manifest says.
    """
    root, _ = walk
    settings = config().copy_and_resolve_references()
    settings.balance.copy_images = False
    balance.main(settings, str(tmp_path / "set"), str(root / "data"), str(root / "predictions_1"))
    selection = read_manifest(tmp_path / "set", "pseudo_labeled")
    assert selection.records != selection.beside.images.records
    job = label_shards.LabelShards(selection, "teacher", tmp_path, 8, 0)
    job._spec = ModelSpec(
        architecture={}, preprocessing=Preprocessing(image_size=SIDE), label_names=NAMES
    )

    def out_of_memory(images, number):
        raise tf.errors.ResourceExhaustedError(None, None, "out of memory")

    job._copies = Copies([(None, out_of_memory)])
    with pytest.raises(tf.errors.ResourceExhaustedError):
        list(job.probabilities(0, first_copies(selection, 0)))
