"""The scheduler alone: what it computes together, in which order, and what it refuses.

There are no clocks but generous time-outs.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

import grpc
import numpy as np
import pytest

from serving import metrics
from serving.batching import Scheduler, Work
from serving.refused import Refused

NUMBERS = {
    "num_batch_threads": 1,
    "max_batch_size": 8,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 2,
    "allowed_batch_sizes": [],
}


class Gate:
    """Model that waits for `opened` to compute; `batches` holds the inputs of each batch."""

    def __init__(self):
        self.opened, self.began, self.batches = threading.Event(), threading.Event(), []
        self.work = Work("m", "s", self.compute)

    def compute(self, inputs):
        self.began.set()
        assert self.opened.wait(20)
        self.batches.append(inputs["x"].tolist())
        if np.isnan(inputs["x"]).any():
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "not a number")
        return {
            "y": 2 * inputs["x"],
            "first": inputs["x"][:, 0] if inputs["x"].ndim > 1 else inputs["x"],
        }


def row(*values):
    return {"x": np.array([values], np.float32)}


def submit(scheduler, gate, *requests):
    """Submits the first request, and the others while it is computed; returns the answers' `y`."""
    first = scheduler.submit(gate.work, requests[0])
    assert gate.began.wait(20)
    others = [scheduler.submit(gate.work, request) for request in requests[1:]]
    gate.opened.set()
    return [future.result(20)["y"].tolist() for future in (first, *others)]


def test_while_one_batch_is_computed_the_next_collects():
    gate, measured = Gate(), metrics.Metrics()
    answers = submit(Scheduler(NUMBERS, measured), gate, *(row(i) for i in range(11)))
    assert answers == [[[2.0 * i]] for i in range(11)]
    assert [len(batch) for batch in gate.batches] == [1, 8, 2]
    text = measured.text()
    assert f'{metrics.BATCH}_count{{model_name="m",op_name="s"}} 3' in text
    assert f'{metrics.BATCH}_sum{{model_name="m",op_name="s"}} 11' in text


def test_batches_are_filled_up_to_allowed_sizes():
    gate, measured = Gate(), metrics.Metrics()
    scheduler = Scheduler({**NUMBERS, "allowed_batch_sizes": [2, 4, 8]}, measured)
    pair = {"x": np.array([[5.0], [6.0]], np.float32)}
    assert submit(scheduler, gate, row(1), row(2), pair) == [[[2.0]], [[4.0]], [[10.0], [12.0]]]
    assert gate.batches == [[[1.0], [1.0]], [[2.0], [5.0], [6.0], [6.0]]]
    assert f'{metrics.PROCESSED}{{model_name="m",op_name="s",batch_size="4"}} 1' in measured.text()


def test_only_equal_shapes_of_one_signature_are_joined():
    gate, other, scheduler = Gate(), Gate(), Scheduler(NUMBERS, metrics.Metrics())
    other.opened.set()
    requests = [
        row(0),
        row(1),
        row(1, 2),
        row(3),
        {"x": np.zeros((0, 1), np.float32)},
        {"x": np.float32(7)},
    ]
    elsewhere = scheduler.submit(other.work, row(9))
    assert submit(scheduler, gate, *requests) == [[[0.0]], [[2.0]], [[2.0, 4.0]], [[6.0]], [], 14.0]
    assert elsewhere.result(20)["y"].tolist() == [[18.0]]
    assert gate.batches == [[[0.0]], [[1.0], [3.0]], [[1.0, 2.0]], [], 7.0]


def test_a_faulty_request_fails_alone():
    gate, scheduler = Gate(), Scheduler(NUMBERS, metrics.Metrics())
    first = scheduler.submit(gate.work, row(1))
    assert gate.began.wait(20)
    futures = [scheduler.submit(gate.work, row(value)) for value in (2, np.nan, 3)]
    gate.opened.set()
    with pytest.raises(Refused, match="not a number"):
        futures[1].result(20)
    assert [future.result(20)["y"].item() for future in (first, futures[0], futures[2])] == [
        2,
        4,
        6,
    ]


def test_a_client_that_gives_up_takes_no_answer_from_others():
    gate, scheduler = Gate(), Scheduler(NUMBERS, metrics.Metrics())
    first = scheduler.submit(gate.work, row(1))
    assert gate.began.wait(20)
    gone, other = (scheduler.submit(gate.work, row(value)) for value in (2, 3))
    assert not gone.cancel()
    gate.opened.set()
    assert [future.result(20)["y"].item() for future in (first, other)] == [2, 6]


def test_a_dropped_model_is_freed_without_another_request():
    gate = Gate()
    gate.opened.set()
    freed = weakref.ref(gate)
    scheduler = Scheduler(NUMBERS, metrics.Metrics())
    assert scheduler.submit(gate.work, row(1)).result(20)["y"].item() == 2
    del gate
    until = time.monotonic() + 20
    while freed() is not None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    assert freed() is None


def test_a_full_queue_and_a_large_request_are_refused():
    gate, scheduler = Gate(), Scheduler(NUMBERS, metrics.Metrics())
    futures = [scheduler.submit(gate.work, row(0))]
    assert gate.began.wait(20)
    futures += [scheduler.submit(gate.work, {"x": np.ones((8, 1), np.float32)}) for _ in range(2)]
    with pytest.raises(Refused, match="16 images wait already") as caught:
        scheduler.submit(gate.work, row(1))
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(Refused, match="9 rows; at most 8"):
        scheduler.submit(gate.work, {"x": np.ones((9, 1), np.float32)})
    gate.opened.set()
    assert [len(future.result(20)["y"]) for future in futures] == [1, 8, 8]
    assert scheduler.submit(gate.work, row(3)).result(20)["y"].item() == 6  # there is room again


def test_patience_ends_when_the_batch_is_full():
    gate = Gate()
    gate.opened.set()
    scheduler = Scheduler(
        {**NUMBERS, "batch_timeout_micros": 60_000_000, "max_batch_size": 2}, metrics.Metrics()
    )
    futures = [scheduler.submit(gate.work, row(i)) for i in range(2)]
    assert [future.result(20)["y"].item() for future in futures] == [0, 2]
    assert [len(batch) for batch in gate.batches] == [2]


def test_without_batching_each_request_is_computed_by_itself():
    gate = Gate()
    gate.opened.set()
    scheduler = Scheduler(None, metrics.Metrics())
    futures = [
        scheduler.submit(gate.work, {"x": np.full((1 + i, 1), i, np.float32)}) for i in range(40)
    ]
    assert [len(future.result(20)["y"]) for future in futures] == [*range(1, 41)]
    assert sorted(len(batch) for batch in gate.batches) == [*range(1, 41)]


def test_outputs_without_a_row_for_each_input_are_computed_alone():
    work = Work("m", "s", lambda inputs: {"total": inputs["x"].sum()})
    scheduler = Scheduler({**NUMBERS, "allowed_batch_sizes": [4]}, metrics.Metrics())
    futures = [scheduler.submit(work, row(i)) for i in range(8)]
    assert [future.result(20)["total"] for future in futures] == [*range(8)]
