"""Cards that fail: real actors on a Ray that claims to have two GPUs, and the records that decide what is left out."""

import contextlib
import functools
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_app.cluster import connection, ray_workarounds
from ray_app.cluster.capacity import Request
from ray_app.errors import RERUN, Refused
from ray_app.work_queue import watchdog
from ray_app.work_queue.cards import Card, CardRecords
from ray_app.work_queue.in_flight import InFlightTracker, Terms
from ray_app.work_queue.queue import Pool, Queue, Work
from ray_app.work_queue.worker import Worker
from tests.conftest import run_python

A, B, C = (Card("node-1", (index,)) for index in "012")


class CardGone(Exception):
    """What a worker raises whose card has failed."""


class CardSquares(Worker):
    """Squares numbers on a card that fails, by its index: `batches` that it does before, and `times` that it fails."""

    ITEM = "number"
    CARD_FAILED = (CardGone,)

    def load(self, folder: str, failing: dict[str, dict[str, int]]) -> Path:
        self._failing = failing.get(self.card().ids[0], {})
        self._done = 0
        self._log = Path(folder)
        if "loads" in self._failing:
            self._fail("no kernel image")
        return self._log

    def process(self, batch: dict[str, list[int]]) -> list[Any]:
        time.sleep(0.2)
        with (self._log / "sizes").open("a") as sizes:
            sizes.write(f"{len(batch['number'])}\n")
        if self._failing.get("poison") in batch["number"] or self._done >= self._failing.get("batches", 1_000):
            self._fail("illegal memory access")
        self._done += 1
        return [(number, number * number, None) for number in batch["number"]]

    def _fail(self, message: str) -> None:
        failures = self._log / f"failed-{self.card().ids[0]}"
        with failures.open("a") as log:
            log.write("x")
        if len(failures.read_text()) <= self._failing.get("times", 1_000):
            raise CardGone(message)

    def give_up(self, item: dict[str, list[int]], error_type: str, message: str) -> list[Any]:
        return [(item["number"][0], None, f"{error_type}: {message}")]

    def finish(self, batch: dict[str, list[int]], results: list[Any], idle_seconds: float) -> pa.Table:
        names = ("number", "square", "error")
        return pa.table(dict(zip(names, map(list, zip(*results, strict=True)), strict=True)))


def keep(table: pa.Table, notice: Any) -> pa.Table:
    return table


def run_on_two_gpus(scenarios: dict[str, dict[str, Any]]) -> None:
    """In a process of its own: what each scenario of failing cards gives, as JSON."""
    import ray

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    watchdog.POLL_SECONDS = 0.1
    with ray_workarounds.quiet_node_messages():
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, **connection.QUIET)
        print(json.dumps({name: run_scenario(failing) for name, failing in scenarios.items()}))
        ray.shutdown()


def run_scenario(failing: dict[str, Any]) -> dict[str, Any]:
    numbers = list(range(36))
    batches = [pa.table({"number": numbers[start : start + 3]}) for start in range(0, len(numbers), 3)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        work = Work(CardSquares, (folder, failing), 3, functools.partial(keep), "squares", Terms("number"))
        error = None
        try:
            queue = Queue(work, Pool(Request(1.0)), batches)
            queue.run(lambda table: rows.extend(table.to_pylist()), lambda: None)
        except Refused as refused:
            error = str(refused)
        sizes = Path(folder, "sizes")
        return {
            "rows": sorted((row["number"], row["square"], row["error"]) for row in rows),
            "sizes": sizes.read_text().split() if sizes.exists() else [],
            "said": said.getvalue().splitlines(),
            "error": error,
            "replays": queue.replays,
        }


POISON = 13
"""The number that breaks every card in the scenario of that name."""
SCENARIOS: dict[str, Any] = {
    "first batch": {"0": {"batches": 0}},
    "later batch": {"0": {"batches": 2}},
    "once": {"1": {"batches": 1, "times": 1}},
    "while loading": {"0": {"loads": 1}},
    "all": {"0": {"batches": 1}, "1": {"batches": 0}},
    "poison": {"0": {"poison": POISON}, "1": {"poison": POISON}},
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return json.loads(
        run_python("from tests.work_queue.test_cards import *; run_on_two_gpus(SCENARIOS)").splitlines()[-1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first batch", "later batch", "once", "while loading"])
def test_a_card_that_fails_costs_no_item(outcomes, name):
    outcome = outcomes[name]
    assert outcome["error"] is None
    assert outcome["rows"] == [[number, number * number, None] for number in range(36)]
    assert set(outcome["sizes"]) == {"3"}  # no batch is taken apart


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("first batch", "illegal memory access"),
        ("while loading", "no kernel image"),
    ],
)
def test_a_card_that_fails_again_is_left_out_and_named_once(outcomes, name, error):
    first, second = outcomes[name]["said"]
    assert first.startswith("proxyqueue: GPU 0 of node ")
    assert first.endswith(f": {error}; restarting its worker")
    assert second.startswith("proxyqueue: GPU 0 of node ")
    assert second.endswith(f": failed 2 times in a row, and is left out of this run: {error}")


@pytest.mark.slow
def test_a_card_that_fails_once_is_used_again(outcomes):
    (line,) = outcomes["once"]["said"]
    assert line.endswith(": illegal memory access; restarting its worker")
    assert outcomes["once"]["replays"] >= 1


@pytest.mark.slow
def test_a_run_without_a_card_that_works_ends(outcomes):
    outcome = outcomes["all"]
    assert outcome["error"].startswith("the run has left out all its 2 GPUs; the last was GPU ")
    assert outcome["error"].endswith(f": illegal memory access; {RERUN}")
    assert all(square == number * number for number, square, _ in outcome["rows"])


@pytest.mark.slow
def test_an_item_that_breaks_both_cards_fails_alone(outcomes):
    outcome = outcomes["poison"]
    assert outcome["error"] is None
    failed = {number: error for number, _, error in outcome["rows"] if error}
    assert set(failed) == {POISON}
    assert failed[POISON].startswith("WorkerDied: Run on its own, this number crashed the worker 2 times")
    assert len(outcome["rows"]) == 36


@pytest.fixture
def records() -> CardRecords:
    return CardRecords()


def test_a_card_is_left_out_when_it_fails_again_within_three_batches(records):
    assert records.failed(A, "b1", "illegal access")
    assert records.left_out == {}
    for _ in range(2):
        records.worked(A)
    assert records.failed(A, "b2", "illegal access again")
    assert records.left_out == {A: "illegal access again"}


def test_a_card_that_did_three_batches_since_it_failed_has_recovered(records):
    for batch in ("b1", "b2", "b3"):
        records.failed(A, batch, "illegal access")
        for _ in range(3):
            records.worked(A)
    assert records.left_out == {}


def test_cards_are_counted_one_by_one(records):
    for card in (A, B, C):
        assert records.failed(card, None, "no kernel image")
    assert records.left_out == {}
    assert records.failed(B, None, "no kernel image")
    assert records.left_out == {B: "no kernel image"}


def test_a_batch_that_fails_on_a_third_card_is_to_blame_and_frees_the_others(records):
    for card in (A, A, B, B):
        assert records.failed(card, "b1", "device-side assert")
    assert set(records.left_out) == {A, B}
    assert not records.failed(C, "b1", "device-side assert")
    assert records.is_blamed("b1")
    assert records.left_out == {}
    records.forget("b1")
    assert not records.is_blamed("b1")


def test_a_card_that_failed_with_other_batches_too_stays_out(records):
    for card, batch in ((A, "b2"), (A, "b1"), (A, "b3"), (B, "b1"), (C, "b1")):
        records.failed(card, batch, "device-side assert")
    assert set(records.left_out) == {A}


def test_without_another_card_a_batch_that_fails_again_is_to_blame(records):
    assert records.failed(A, "b1", "device-side assert", is_last=True)
    assert not records.failed(A, "b1", "device-side assert", is_last=True)
    assert records.is_blamed("b1")
    assert records.left_out == {}


def test_without_another_card_one_that_fails_with_two_batches_is_left_out(records):
    for batch in ("b1", "b2"):
        assert records.failed(A, batch, "illegal access", is_last=True)
    assert set(records.left_out) == {A}


def test_the_last_card_frees_the_one_that_the_same_batch_took_out(records):
    for card, is_last in ((A, False), (A, False), (B, True)):
        assert records.failed(card, "b1", "device-side assert", is_last=is_last)
    assert set(records.left_out) == {A}
    assert not records.failed(B, "b1", "device-side assert", is_last=True)
    assert records.left_out == {}


@pytest.mark.parametrize("is_one_done", [True, False])
def test_a_card_that_fails_with_one_item_after_another_is_left_out(records, is_one_done):
    for _ in range(2):
        records.failed(A, "b1", "illegal access", is_last=True)
    for _ in range(2):
        assert not records.failed(A, "b1", "illegal access", "p1", is_last=True)
    if is_one_done:
        records.worked_alone(A)
    assert records.failed(A, "b1", "illegal access", "p2", is_last=True) != is_one_done
    assert (A in records.left_out) != is_one_done


@pytest.fixture
def tracker() -> InFlightTracker:
    """With worker w1 on card A and w2 on card B, and no Ray."""
    tracker = InFlightTracker(Terms("prompt"))
    for worker, card in (("w1", A), ("w2", B)):
        assert tracker.loading(worker, "node-1", 1, card)
        tracker.loaded(worker)
    return tracker


def test_all_that_a_worker_had_in_flight_when_its_card_failed_is_begun_whole_again(tracker):
    assert tracker.begin("b1", "w1")
    assert tracker.begin("b2", "w1")
    tracker.card_failed("w1", "b2", "illegal access")
    status = tracker.status({"node-1"})
    assert status.in_flight == []  # or the watchdog would kill the next worker of that name
    assert status.notices == ["GPU 0 of node node-1: illegal access; restarting its worker"]
    assert [tracker.begin(batch, "w1") for batch in ("b1", "b2")] == [True, True]
    assert tracker.status({"node-1"}).replays == 2


def test_a_card_that_fails_with_an_item_alone_costs_it_no_try(tracker):
    tracker.begin("b1", "w1")
    assert not tracker.begin("b1", "w2")  # w1 died of something else
    for _ in range(5):
        assert tracker.begin_alone("b1", "p", "w2") is None
        tracker.card_failed("w2", "b1", "illegal access")
        assert not tracker.begin("b1", "w2")
    assert tracker.begin_alone("b1", "p", "w2") is None


def test_no_worker_loads_on_a_card_that_is_left_out(tracker):
    for _ in range(2):
        tracker.card_failed("w1", None, "illegal access")
    assert tracker.status({"node-1"}).left_out == {A: "illegal access"}
    assert not tracker.loading("w1", "node-1", 2, A)
    assert tracker.loading("w1", "node-1", 3, C)
    assert tracker.status({"node-1"}).deaths_while_loading == 0


def test_a_batch_that_fails_on_card_after_card_is_taken_apart(tracker):
    for worker, card in (("w1", A), ("w2", B), ("w3", C)):
        tracker.loading(worker, "node-1", 1, card)
        tracker.loaded(worker)
        assert tracker.begin("b1", worker)
        tracker.card_failed(worker, "b1", "device-side assert")
    assert not tracker.begin("b1", "w3")
    for _ in range(2):
        assert tracker.begin_alone("b1", "p", "w3") is None
        tracker.card_failed("w3", "b1", "device-side assert")
    error_type, message = tracker.begin_alone("b1", "p", "w3") or ("", "")
    assert (error_type, message[:40]) == ("WorkerDied", "Run on its own, this prompt crashed the ")
    assert tracker.status({"node-1"}).left_out == {}
