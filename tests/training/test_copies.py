"""Batches shared out among devices, and which devices a process takes."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import tensorflow as tf

from cli.errors import InputError
from training import gpus, strategy
from training.copies import AHEAD, Copies


def copies(number: int, function: Any, at_once: int = 1) -> Copies:
    return Copies([(None, function)] * number, at_once)


def test_answers_keep_the_order_of_the_items() -> None:
    def slow(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)
        return i * i

    assert list(copies(4, slow).map(lambda i: (i,), range(20))) == [(i, i * i) for i in range(20)]


def test_each_device_is_asked_one_thing_at_a_time_and_all_are_busy() -> None:
    """Tests that six calls meet at a barrier that only as many calls at the same time pass."""
    meeting, lock, busy, most = threading.Barrier(6), threading.Lock(), [0, 0, 0], [0]

    def on(device: int) -> Any:
        def answer(i: int) -> int:
            with lock:
                busy[device] += 1
                most[0] = max(most[0], *busy)
            meeting.wait(timeout=30)
            with lock:
                busy[device] -= 1
            return i

        return answer

    several = Copies([(None, on(0)), (None, on(1)), (None, on(2))], at_once=2)
    assert several.places == 6
    assert [answer for _, answer in several.map(lambda i: (i,), range(12))] == list(range(12))
    assert most[0] == 2


def test_few_items_are_taken_ahead() -> None:
    taken = []

    def items() -> Any:
        for i in range(100):
            taken.append(i)
            yield i

    answers = copies(2, lambda i: i).map(lambda i: (i,), items())
    next(answers)
    assert len(taken) == AHEAD * 2
    answers.close()


def test_an_error_of_the_items_comes_after_the_answers_before_it() -> None:
    def items() -> Any:
        yield from range(3)
        raise InputError("record 3 is corrupt")

    answers = copies(2, lambda i: i).map(lambda i: (i,), items())
    assert [next(answers)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="record 3"):
        next(answers)


def test_an_error_of_a_device_comes_in_its_place() -> None:
    answers = copies(2, lambda i: 1 // (2 - i)).map(lambda i: (i,), range(9))
    assert [next(answers)[1] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(answers)


def test_closed_copies_end_their_maps() -> None:
    several = copies(2, lambda i: i)
    answers = several.map(lambda i: (i,), range(100))
    next(answers)
    several.close()
    with pytest.raises(RuntimeError):
        list(answers)


@pytest.fixture(name="visible")
def _visible(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine with four GPUs; returns what `set_visible_devices` was given."""
    given: list[Any] = []
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: [f"GPU {i}" for i in range(4)] if kind == "GPU" else ["CPU"],
    )
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *_: None)
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: given.append(devices)
    )
    return given


def test_one_process_takes_all_gpus(visible: list[Any]) -> None:
    for name in ("auto", "mirrored"):
        assert strategy.devices(name) == ("GPU:0", "GPU:1", "GPU:2", "GPU:3")
    assert strategy.devices("one_device") == (None,)
    assert not visible


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (2, [["GPU 0", "GPU 2"], ["GPU 1", "GPU 3"]]),
        (4, [["GPU 0"], ["GPU 1"], ["GPU 2"], ["GPU 3"]]),
        (6, [["GPU 0"], ["GPU 1"], ["GPU 2"], ["GPU 3"], ["GPU 0"], ["GPU 1"]]),
    ],
)
def test_processes_share_the_gpus_out(
    visible: list[Any], processes: int, expected: list[list[str]]
) -> None:
    names = [strategy.devices("auto", share=(processes, i)) for i in range(processes)]
    assert visible == expected
    assert names == [("GPU:0", "GPU:1") if len(own) > 1 else (None,) for own in expected]


def test_devices_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "on_machine", lambda: False)
    assert strategy.devices() == strategy.devices("one_device") == (None,)
    with pytest.raises(InputError, match="mirrored: TensorFlow sees no GPU"):
        strategy.devices("mirrored")
    with pytest.raises(InputError, match="multi_worker is for training"):
        strategy.devices("multi_worker")
    with pytest.raises(InputError, match="no strategy 'all'"):
        strategy.devices("all")
