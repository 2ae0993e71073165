"""The queue with other work than images: numbers in, their squares out, by workers that die, hang and refuse."""

import functools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_app.cluster.capacity import Request
from ray_app.errors import ClusterRefused, ModelRefused, Refused
from ray_app.work_queue import watchdog
from ray_app.work_queue.in_flight import Terms
from ray_app.work_queue.queue import Pool, Queue, Work, tasks_in_flight
from ray_app.work_queue.worker import Worker
from tests.support.processes import comes_true

TERMS = Terms("number", "TooSlow", "--seconds")
KILLS, HANGS, KILLS_ONCE = 13, 17, 19
"""Numbers that are the end of a worker: each time, for its time, and if no other worker has died of it."""


class NoSquares(Exception):
    """What a worker raises that can't square at all."""


class Squares(Worker):
    """Squares numbers; `mode` says what happens while it loads."""

    ITEM = "number"

    def load(self, folder: str, mode: str) -> Any:
        if mode == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "can't":
            raise NoSquares("no squares on\nthis machine")
        return Path(folder)

    def process(self, batch: dict[str, list[int]]) -> list[Any]:
        died = self.loaded / "died"
        if KILLS in batch["number"] or (KILLS_ONCE in batch["number"] and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in batch["number"]:
            time.sleep(10_000)
        return [(number, number * number, None) for number in batch["number"]]

    def give_up(self, item: dict[str, list[int]], error_type: str, message: str) -> list[Any]:
        return [(item["number"][0], None, f"{error_type}: {message}")]

    def finish(self, batch: dict[str, list[int]], results: list[Any], idle_seconds: float) -> pa.Table:
        names = ("number", "square", "error")
        return pa.table(dict(zip(names, map(list, zip(*results, strict=True)), strict=True)))


def store(table: pa.Table, folder: Path, notice: Any) -> pa.Table:
    """Writes a file per number, and tells that it did."""
    for number in table["number"].to_pylist():
        (folder / f"{number}.txt").write_text(str(number))
    notice("numbers were stored", "stored")
    return table.append_column("stored", pa.array([True] * table.num_rows))


def run(folder: Path, numbers: list[int], mode: str = "", timeout: float | None = None) -> dict[int, Any]:
    """Squares, or errors, by number; each number comes back once."""
    work = Work(
        worker=Squares,
        arguments=(str(folder), mode),
        batch_size=3,
        write=functools.partial(store, folder=folder),
        name="squares",
        terms=TERMS,
        timeout=timeout,
        fatal=(NoSquares,),
        refusal=ModelRefused,
    )
    batches = [pa.table({"number": numbers[start : start + 3]}) for start in range(0, len(numbers), 3)]
    queue = Queue(work, Pool(Request(0.0, (1, 1))), batches)
    rows: list[dict[str, Any]] = []
    ticks: list[float] = []
    queue.run(lambda table: rows.extend(table.to_pylist()), lambda: ticks.append(time.monotonic()))
    assert len(ticks) >= len(batches)
    assert all(row["stored"] for row in rows)
    results = {row["number"]: row["error"] or row["square"] for row in rows}
    assert len(results) == len(rows)
    results["replays"] = queue.replays
    return results


class LateSquares(Squares):
    """The second worker loads when the first one has a batch, which ends when the second one has its own.

    Rows say which worker made them.
    """

    def load(self, folder: str, mode: str) -> Any:
        try:
            (Path(folder) / "first").mkdir()
        except FileExistsError:
            comes_true(lambda: any(Path(folder).glob("*.began")), 60)
        return super().load(folder, mode)

    def process(self, batch: dict[str, list[int]]) -> list[Any]:
        (self.loaded / f"{self.actor_id}.began").touch()
        comes_true(lambda: len(list(self.loaded.glob("*.began"))) == 2, 60)
        return [(number, number * number, self.actor_id) for number in batch["number"]]


class PreparedSquares(Squares):
    """Squares what `prepare` made of the numbers, which dies of some."""

    PREPARES = True

    def prepare(self, batch: dict[str, list[int]]) -> Any:
        if KILLS in batch["number"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": [-number for number in batch["number"]]}

    def process(self, batch: dict[str, list[int]]) -> list[Any]:
        return [(-number, number * number, None) for number in batch["number"]]


def read_files(table: pa.Table, folder: Path) -> pa.Table:
    """What a worker gets: the content of a file per number."""
    contents = [(folder / str(number)).read_text() for number in table["number"].to_pylist()]
    return pa.table({"number": list(map(int, contents))})


@pytest.fixture(autouse=True)
def polls_often(ray_local, monkeypatch):
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.1)


def test_every_number_comes_back_squared_and_stored(tmp_path, capsys):
    assert run(tmp_path, list(range(10))) == {**{number: number * number for number in range(10)}, "replays": 0}
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(map(str, range(10)))
    assert capsys.readouterr().err == "proxyqueue: numbers were stored\n"  # by four writers, told once


def test_a_number_that_kills_workers_is_given_up_and_costs_no_other(tmp_path):
    numbers = [1, KILLS, 3, 4, 5, 6]
    results = run(tmp_path, numbers)
    assert results.pop("replays") >= 1
    assert results.pop(KILLS) == (
        "WorkerDied: Run on its own, this number crashed the worker 2 times (crash or out of memory)."
    )
    assert results == {number: number * number for number in numbers if number != KILLS}


def test_a_batch_whose_worker_dies_once_is_processed_again(tmp_path):
    results = run(tmp_path, [1, KILLS_ONCE, 3])
    assert results == {1: 1, KILLS_ONCE: KILLS_ONCE**2, 3: 9, "replays": 1}


def test_what_is_read_before_and_prepared_beside_is_what_workers_process(tmp_path):
    """The files have other numbers than the batches; a worker that dies while it prepares costs its number alone."""
    for number in range(6):
        (tmp_path / str(number)).write_text(str(number + 10))
    read = functools.partial(read_files, folder=tmp_path)
    work = Work(PreparedSquares, (str(tmp_path), ""), 3, None, "squares", TERMS, read=read)
    batches = [pa.table({"number": [0, 1, 2]}), pa.table({"number": [3, 4, 5]})]
    rows: list[dict[str, Any]] = []
    Queue(work, Pool(Request(0.0, (1, 1))), batches).run(lambda table: rows.extend(table.to_pylist()), lambda: None)
    squares = {row["number"]: row["square"] for row in rows}
    assert squares == {10: 100, 11: 121, 12: 144, KILLS: None, 14: 196, 15: 225}


def test_a_worker_that_loads_first_takes_no_more_than_its_share(tmp_path):
    assert [tasks_in_flight(batches, 2, False) for batches in (1, 2, 3, 4, 9)] == [1, 1, 2, 2, 2]
    assert [tasks_in_flight(batches, 2, True) for batches in (1, 2, 3, 4, 5, 9)] == [1, 1, 2, 2, 3, 3]
    work = Work(LateSquares, (str(tmp_path), ""), 3, None, "squares", TERMS)
    batches = [pa.table({"number": [1, 2, 3]}), pa.table({"number": [4, 5, 6]})]
    rows: list[dict[str, Any]] = []
    Queue(work, Pool(Request(0.0, (2, 2))), batches).run(lambda table: rows.extend(table.to_pylist()), lambda: None)
    assert len({row["error"] for row in rows}) == 2


@pytest.mark.slow
def test_a_number_that_hangs_is_given_up_for_its_time(tmp_path, capsys):
    results = run(tmp_path, [HANGS, 2], timeout=3.0)
    assert results[2] == 4
    assert results[HANGS] == "TooSlow: Run on its own, this number exceeded the time limit 2 times (--seconds)."
    assert "(limit 3 s, --seconds); restarting the worker." in capsys.readouterr().err


def test_a_worker_that_cannot_load_ends_the_run_with_its_words(tmp_path):
    with pytest.raises(ModelRefused, match=r"^no squares on$|^no squares on this machine$"):
        run(tmp_path, [1], mode="can't")


def test_workers_that_die_while_they_load_end_the_run(tmp_path):
    with pytest.raises(Refused, match=r"^squares: [4-9] workers died while loading it"):
        run(tmp_path, [1], mode="dies")


def test_a_pool_that_the_cluster_can_never_have_is_refused(tmp_path):
    work = Work(Squares, (str(tmp_path), ""), 3, store, "squares", TERMS)
    with pytest.raises(ClusterRefused, match=r"^--gpus_per_actor 1: the largest node has 0 GPUs"):
        Queue(work, Pool(Request(1.0)), [pa.table({"number": [1]})])


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ValueError("of the caller")])
def test_what_the_caller_raises_ends_the_run_and_leaves_the_pool_free(tmp_path, raised):
    def stop() -> None:
        raise raised

    work = Work(Squares, (str(tmp_path), ""), 3, functools.partial(store, folder=tmp_path), "squares", TERMS)
    queue = Queue(work, Pool(Request(0.0, (1, 1))), [pa.table({"number": [1]})])
    with pytest.raises(type(raised)):
        queue.run(lambda table: None, stop)
    assert run(tmp_path, [2])[2] == 4
