"""The loop: exact continuation, logs, and a loss that is not finite."""

import io
import json
import os
import re
import signal
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2
from tqdm import tqdm

from cli.errors import InputError
from nets.noise import Dropout
from noisy_student.model import NoisyStudent
from training.checkpoints import Checkpoints
from training.fit import fit
from training.metrics_log import best
from training.optimizers import RMSProp


def trainer(learning_rate=0.05):
    layers = tf.keras.layers
    inputs = tf.keras.Input([8, 8, 3])
    hidden = layers.Conv2D(4, 3, kernel_initializer=tf.keras.initializers.HeNormal(seed=1))(inputs)
    hidden = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(hidden))
    hidden = Dropout(0.5, noise_id="dropout")(hidden)  # its noise must be repeated, too
    model = tf.keras.Model(
        inputs, layers.Dense(3, kernel_initializer=tf.keras.initializers.HeNormal(seed=2))(hidden)
    )
    student = NoisyStudent(model, ema_decay=0.9, seed=1)
    student.compile(optimizer=RMSProp(learning_rate))
    return student


def batches(start):
    """Returns data that are a function of the step, as `data.pipeline`'s batches are."""

    def batch(step):
        images = tf.random.stateless_uniform([6, 8, 8, 3], [7, step], maxval=255.0)
        return images, tf.cast(tf.reduce_mean(images, [1, 2, 3]) * 10, tf.int64) % 3

    return tf.data.Dataset.range(start, 2**62).map(batch)


class Killed(Exception):
    pass


def killed_at(step):
    """Returns batches that end the run before it gets to `step`."""

    def make(start):
        def fuse(i):
            if i >= step:
                raise Killed
            return i

        return (
            batches(start)
            .enumerate(start)
            .map(lambda i, b: (tf.numpy_function(fuse, [i], tf.int64), b))
            .map(lambda _, b: b)
        )

    return make


SIZES = {"steps": 13, "images_per_step": 6, "log_every": 2, "checkpoint_every": 4}


def run(directory, make=batches):
    student = trainer()
    fit(student, make, directory, **SIZES)
    return student.model.get_weights() + [shadow.numpy() for shadow in student.ema.shadows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return run(directory), directory


@pytest.mark.parametrize("step", [3, 9])  # before the first checkpoint; between two
def test_a_killed_run_ends_with_the_same_weights(tmp_path, uninterrupted, step):
    weights, whole = uninterrupted
    with pytest.raises((Killed, tf.errors.OpError)):
        run(tmp_path, killed_at(step))
    again = run(tmp_path)
    assert len(again) == len(weights)
    for a, b in zip(weights, again):
        np.testing.assert_array_equal(a, b)
    lines = [
        [json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()]
        for d in (whole, tmp_path)
    ]
    assert [row["step"] for row in lines[0]] == [2, 4, 6, 8, 10, 12, 13]
    assert [[row["step"], row["loss"]] for row in lines[0]] == [
        [row["step"], row["loss"]] for row in lines[1]
    ]
    seconds = [row["seconds"] for row in lines[1]]  # over both starts
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0]


def test_a_loss_scale_goes_on_where_it_was(tmp_path):
    def scaled(directory, make=batches):
        student = trainer()
        student.compile(
            tf.keras.mixed_precision.LossScaleOptimizer(RMSProp(0.05), dynamic_growth_steps=3)
        )
        fit(student, make, directory, **SIZES)
        return [
            *student.model.get_weights(),
            student.optimizer.loss_scale.numpy(),
            student.optimizer.dynamic_counter.numpy(),
        ]

    whole = scaled(tmp_path / "whole")
    assert whole[-2:] == [2.0**19, 1]  # doubled after every third step of 13
    with pytest.raises((Killed, tf.errors.OpError)):
        scaled(tmp_path / "killed", killed_at(9))
    for a, b in zip(whole, scaled(tmp_path / "killed")):
        np.testing.assert_array_equal(a, b)
    assert "loss_scale" in (tmp_path / "killed" / "metrics.jsonl").read_text()


def losses(directory):
    return [
        (row["step"], row["loss"])
        for row in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    ]


def terminated_at(step):
    """Returns batches that send SIGTERM to the run when `step` is read."""

    def make(start):
        def send(i):
            if i == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return i

        return (
            batches(start)
            .enumerate(start)
            .map(lambda i, b: (tf.numpy_function(send, [i], tf.int64), b))
            .map(lambda _, b: b)
        )

    return make


def test_the_time_left_leaves_the_first_step_out(tmp_path, capsys, monkeypatch):
    """Simulates a first step of 100 s and others of 20 s."""
    student = trainer()

    def clock():
        done = int(student.optimizer.iterations)
        return 80.0 + 20.0 * done if done else 0.0

    monkeypatch.setattr("training.callbacks.time", types.SimpleNamespace(perf_counter=clock))
    fit(student, batches, tmp_path, steps=4, images_per_step=6, log_every=1, checkpoint_every=4)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines[0] == "step 0/4 compiling"
    assert [line.split()[-1] for line in lines[1:]] == ["left=?", "left=40s", "left=20s", "left=0s"]


def test_the_bar_counts_from_the_second_step_on(tmp_path, monkeypatch):
    made = []

    class Bar(tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, file=io.StringIO())
            self.said = [self.desc]
            made.append(self)

        def set_description(self, text):
            self.said.append(
                (text, self.n, self.initial, abs(self.start_t - self.last_print_t) < 1e-3)
            )

    monkeypatch.setattr("training.callbacks.tqdm", Bar)
    monkeypatch.setattr(
        "sys.stderr",
        types.SimpleNamespace(isatty=lambda: True, write=lambda text: None, flush=lambda: None),
    )
    fit(trainer(), batches, tmp_path, steps=3, images_per_step=6, log_every=1, checkpoint_every=3)
    assert made[0].said == ["compiling", ("", 1, 1, True)] and made[0].n == 3


@pytest.mark.parametrize("step", [5, 6])
def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path, uninterrupted, step, capsys
):
    weights, whole = uninterrupted
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, terminated_at(step))
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    found = re.search(r"stopped by SIGTERM after step (\d+)", capsys.readouterr().err)
    assert found and (tmp_path / "checkpoints" / f"ckpt-{found[1]}.index").exists()
    for a, b in zip(weights, run(tmp_path)):
        np.testing.assert_array_equal(a, b)
    assert losses(tmp_path) == losses(whole)  # the line after the stop tells of all its steps


def test_sigterm_during_an_evaluation_leaves_at_once(tmp_path):
    def evaluate():
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the evaluation went on")

    with pytest.raises(SystemExit):
        fit(trainer(), batches, tmp_path, **SIZES, evaluate_every=6, evaluate=evaluate)
    assert (tmp_path / "checkpoints" / "ckpt-4.index").exists()


def test_sigterm_while_the_first_step_is_traced_leaves_at_once(tmp_path, capsys, monkeypatch):
    student = trainer()

    def traced(data):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        raise AssertionError("the trace went on")

    monkeypatch.setattr(student, "train_step", traced)
    with pytest.raises(SystemExit) as stop:
        fit(student, batches, tmp_path, **SIZES)
    assert stop.value.code == 143
    assert "stopped by SIGTERM before its first step" in capsys.readouterr().err
    assert not (tmp_path / "checkpoints").exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "part", "message"),
    [
        (cut, "data-00000-of-00001", "is damaged"),
        (Path.unlink, "data-00000-of-00001", "is damaged"),
        (Path.unlink, "index", "has no .index"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, uninterrupted, capsys, harm, part, message):
    weights, _ = uninterrupted
    with pytest.raises((Killed, tf.errors.OpError)):
        run(tmp_path, killed_at(11))
    harm(tmp_path / "checkpoints" / f"ckpt-8.{part}")
    for a, b in zip(weights, run(tmp_path)):
        np.testing.assert_array_equal(a, b)
    output = capsys.readouterr().out
    assert f"ckpt-8 {message}" in output and "continuing at step 4" in output


def test_a_first_checkpoint_that_was_not_finished_is_none(tmp_path, uninterrupted, capsys):
    (tmp_path / "checkpoints").mkdir()
    # The index comes last.
    (tmp_path / "checkpoints" / "ckpt-4.data-00000-of-00001").write_bytes(b"half")
    for a, b in zip(uninterrupted[0], run(tmp_path)):
        np.testing.assert_array_equal(a, b)
    assert (
        "ckpt-4 has no .index file" in (output := capsys.readouterr().out)
        and "starting at step 0" in output
    )


def test_damage_that_TensorFlow_has_no_words_for(tmp_path, monkeypatch, capsys):
    with pytest.raises((Killed, tf.errors.OpError)):
        run(tmp_path, killed_at(11))
    read = tf.train.Checkpoint.read

    def fail(self, path, *arguments, **options):
        if path.endswith("-8"):
            raise IndexError
        return read(self, path, *arguments, **options)

    monkeypatch.setattr(tf.train.Checkpoint, "read", fail)
    run(tmp_path)
    assert (
        "ckpt-8 is damaged (IndexError:); trying the checkpoint before it"
        in capsys.readouterr().out
    )


def test_damaged_checkpoints_only_are_refused(tmp_path):
    with pytest.raises((Killed, tf.errors.OpError)):
        run(tmp_path, killed_at(11))
    for path in (tmp_path / "checkpoints").glob("*.data-*"):
        cut(path)
    with pytest.raises(InputError, match=r"all checkpoints in .* are damaged"):
        run(tmp_path)


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch, uninterrupted):
    write = tf.train.Checkpoint.write

    def fail(self, path, *arguments, **options):
        if path.endswith("-8"):
            Path(f"{path}.data-00000-of-00001").write_bytes(b"half")
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")
        return write(self, path, *arguments, **options)

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(InputError, match="no space left for a checkpoint"):
        run(tmp_path)
    assert {path.name.partition(".")[0] for path in (tmp_path / "checkpoints").iterdir()} == {
        "ckpt-4"
    }
    monkeypatch.undo()
    for a, b in zip(uninterrupted[0], run(tmp_path)):
        np.testing.assert_array_equal(a, b)


def test_a_profile_of_some_steps(tmp_path):
    fit(trainer(), batches, tmp_path, **SIZES, profile=(3, 5))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_a_training_that_stops_early_ends_its_profile(tmp_path):
    with_profile = {**SIZES, **scored(*[0.5] * 7)}
    fit(trainer(), batches, tmp_path, **with_profile, stop_after=1, profile=(3, 12))
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_a_finished_run_is_left_alone(uninterrupted):
    weights, directory = uninterrupted
    for a, b in zip(weights, run(directory)):
        np.testing.assert_array_equal(a, b)


def test_the_step_is_traced_once(tmp_path):
    student = trainer()
    fit(student, batches, tmp_path, **SIZES, **scored(*[0.5] * 7))
    assert student.train_tf_function.experimental_get_tracing_count() == 1


def test_a_loss_that_is_not_finite_stops_with_one_line(tmp_path):
    student = trainer(learning_rate=1e30)
    with pytest.raises(InputError, match=r"not finite between steps \d+ and \d+ .*learning rate"):
        fit(student, batches, tmp_path, **SIZES)


def test_evaluations_are_logged(tmp_path):
    student = trainer()
    fit(student, batches, tmp_path, **SIZES, evaluate_every=4, evaluate=lambda: {"top1": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval_top1" in row] == [4, 8, 12, 13]
    assert list((tmp_path / "tensorboard").iterdir())


def kept_steps(directory):
    return sorted(
        int(path.stem.partition("-")[2]) for path in (directory / "checkpoints").glob("*.index")
    )


def scored(*scores):
    """Returns an evaluation at every second step, with these results."""
    rest = iter(scores)
    return {"evaluate_every": 2, "evaluate": lambda: {"top1": next(rest)}}


def test_the_best_evaluation_s_checkpoint_is_kept_and_others_for_good(tmp_path):
    fit(
        trainer(),
        batches,
        tmp_path,
        **SIZES,
        **scored(0.1, 0.4, 0.9, 0.3, 0.9, 0.2, 0.5),
        keep=1,
        keep_every=4,
    )
    assert best(tmp_path)["step"] == 6 and best(tmp_path)["eval_top1"] == 0.9  # the first of two
    assert kept_steps(tmp_path) == [4, 6, 8, 12, 13]


def test_the_best_weights_of_a_killed_run(tmp_path, uninterrupted):
    """Makes the evaluation of step 6 the best; its checkpoint is saved.

    The run is killed, goes on from there, and ends as it would have.
    """
    weights, _ = uninterrupted
    student = trainer()
    with pytest.raises((Killed, tf.errors.OpError)):
        fit(student, killed_at(6), tmp_path, **SIZES, **scored(0.1, 0.4, 0.9))
    at_six = student.model.get_weights()
    assert kept_steps(tmp_path) == [4, 6]
    student = trainer()
    fit(student, batches, tmp_path, **SIZES, **scored(0.3, 0.9, 0.2, 0.5), keep=1)
    for a, b in zip(weights, student.model.get_weights()):
        np.testing.assert_array_equal(a, b)
    assert kept_steps(tmp_path) == [6, 13]
    checkpoints = Checkpoints(tmp_path / "checkpoints", tf.train.Checkpoint(trainer=student))
    checkpoints.restore_step(int(best(tmp_path)["step"]))
    for a, b in zip(at_six, student.model.get_weights()):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="ckpt-12 is damaged or gone"):
        checkpoints.restore_step(12)


def evaluated_steps(directory):
    return [
        row["step"]
        for row in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        if "eval_top1" in row
    ]


def test_it_stops_after_evaluations_without_a_better_one(tmp_path, uninterrupted):
    """Kills a run before step 9, continues it, and starts it again after its end.

    Each time it ends at step 10, with the same weights.
    """
    scores = {2: 0.1, 4: 0.4, 6: 0.4, 8: 0.2, 10: 0.3, 12: 0.9, 13: 0.9}

    def train(directory, make=batches, **more):
        student = trainer()
        evaluate = {
            "evaluate_every": 2,
            "evaluate": lambda: {"top1": scores[int(student.optimizer.iterations)]},
        }
        fit(student, make, directory, **SIZES, **evaluate, **more)
        return student.model.get_weights() + [shadow.numpy() for shadow in student.ema.shadows]

    whole = train(tmp_path / "a", stop_after=3)
    assert evaluated_steps(tmp_path / "a") == [2, 4, 6, 8, 10] and kept_steps(tmp_path / "a") == [
        4,
        8,
        10,
    ]
    assert best(tmp_path / "a")["step"] == 4
    with pytest.raises((Killed, tf.errors.OpError)):
        train(tmp_path / "b", killed_at(8), stop_after=3)
    for _ in range(2):
        for a, b in zip(whole, train(tmp_path / "b", stop_after=3)):
            np.testing.assert_array_equal(a, b)
        assert evaluated_steps(tmp_path / "b") == [2, 4, 6, 8, 10]
    for a, b in zip(uninterrupted[0], train(tmp_path / "c", stop_after=4)):
        np.testing.assert_array_equal(a, b)
    assert evaluated_steps(tmp_path / "c") == list(scores), (
        "step 12 was better than the four before it"
    )


def test_images_at_the_start_and_with_the_evaluations(tmp_path):
    shown = {}

    def images(step):
        shown[step] = np.full([2, 8, 8, 3], step, np.uint8)
        return {"labeled": tf.constant(shown[step])}

    fit(
        trainer(),
        batches,
        tmp_path,
        **SIZES,
        images=images,
        evaluate_every=6,
        evaluate=lambda: {"top1": 0.5},
    )
    (events,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    for event in map(
        event_pb2.Event.FromString, tf.data.TFRecordDataset(str(events)).as_numpy_iterator()
    ):
        for value in event.summary.value:
            if value.tag == "images/labeled":
                found[event.step] = [
                    tf.io.decode_png(png).numpy() for png in value.tensor.string_val[2:]
                ]
    assert sorted(found) == [0, 6, 12, 13]
    for step, pictures in found.items():
        np.testing.assert_array_equal(pictures, shown[step])


def test_steps_must_fit_together(tmp_path):
    with pytest.raises(InputError, match="must divide"):
        fit(
            trainer(),
            batches,
            tmp_path,
            steps=4,
            images_per_step=6,
            log_every=3,
            checkpoint_every=4,
        )


def test_a_training_is_not_done_where_its_data_end(tmp_path):
    with pytest.raises(InputError, match="ended between steps 6 and 13, the last"):
        run(tmp_path, lambda start: batches(start).take(7))


def test_a_file_size_limit_does_not_end_a_training_in_silence(tmp_path, monkeypatch):
    def fail(*_):
        # Keras takes this error for the end of the data.
        raise tf.errors.OutOfRangeError(None, None, "File too large")

    monkeypatch.setattr(tf.train.Checkpoint, "write", fail)
    with pytest.raises(InputError, match="file size limit reached for a checkpoint"):
        run(tmp_path)


def test_events_beyond_a_file_size_limit_are_one_line(tmp_path, limited_files):
    with (
        limited_files(10),
        pytest.raises(
            InputError, match=r"file size limit reached for (metrics|Tensor).*\(ulimit -f\)"
        ),
    ):
        run(tmp_path)
