"""The watchdog: what it takes for hung, whom it kills, and when it ends a run whose model never loads."""

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from ray_app.cluster import connection
from ray_app.errors import Refused
from ray_app.work_queue import in_flight, watchdog
from ray_app.work_queue.in_flight import Status, Terms
from ray_app.work_queue.watchdog import Watchdog

TERMS = Terms("prompt", "DenoiseTimeout", "--denoise_timeout")


def status(seconds: float = 0.0, median: float | None = None, loads: int = 1, deaths: int = 0) -> Status:
    """What the tracker answers while one batch has been in flight for this many seconds."""
    return Status(
        started=1,
        loads=loads,
        deaths_while_loading=deaths,
        replays=0,
        median_seconds=median,
        in_flight=[("w1", seconds)],
    )


@pytest.mark.parametrize(
    ("denoise_timeout", "median", "limit"),
    [
        (None, None, 600.0),
        (None, 10.0, 600.0),
        (None, 31.0, 620.0),
        (None, 100.0, 2_000.0),
        (5.0, 100.0, 5.0),
        (5_000.0, 1.0, 5_000.0),
    ],
)
def test_a_batch_may_take_20_medians_or_600_seconds_or_what_the_user_says(
    monkeypatch, capsys, denoise_timeout, median, limit
):
    ended: list[str] = []
    dog = Watchdog(None, denoise_timeout, "tiny", TERMS)
    monkeypatch.setattr(dog, "_end", ended.append)
    dog._act(status(limit, median))
    assert (ended, capsys.readouterr().err) == ([], "")
    dog._act(status(limit + 1, median))
    assert ended == ["w1"]
    assert capsys.readouterr().err == (
        f"proxyqueue: Worker w1: batch still running after {limit + 1:.0f} s (limit {limit:.0f} s, --denoise_timeout);"
        " restarting the worker.\n"
    )


def test_four_workers_that_die_while_loading_end_the_run_if_none_ever_loaded():
    dog = Watchdog(None, None, "some/model", TERMS)
    dog._act(status(loads=0, deaths=3))
    dog._act(status(loads=1, deaths=100))
    with pytest.raises(Refused, match=r"^some/model: 4 workers died while loading it \(out of memory\?\); try a "):
        dog._act(status(loads=0, deaths=4))


def test_a_worker_that_hangs_is_killed_once(ray_local, monkeypatch, capsys):
    """A real tracker has two batches in flight: one at a process that hangs, one at this process, which replays it."""
    import ray

    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.0)
    node = connection.node_id()
    book: Any = in_flight.start(node, TERMS)
    dog = Watchdog(book, 1.0, "tiny", TERMS)
    hanging = subprocess.Popen(["sleep", "600"])
    try:
        ray.get([book.loading.remote("hangs", node, hanging.pid), book.loading.remote("works", node, os.getpid())])
        ray.get([book.loaded.remote("hangs"), book.loaded.remote("works")])
        ray.get([book.begin.remote("b1", "hangs"), book.begin.remote("b2", "works")])
        deadline = time.monotonic() + 60
        while hanging.poll() is None:
            assert time.monotonic() < deadline, "the watchdog has not killed the process of the batch that hangs"
            ray.get([book.begin.remote("b2", "works"), book.end.remote("b2")])
            dog.tick()
            time.sleep(0.01)
    finally:
        hanging.kill()
    assert hanging.wait() == -signal.SIGKILL
    assert dog.replays == 1
    assert capsys.readouterr().err.count("restarting the worker.\n") == 1
