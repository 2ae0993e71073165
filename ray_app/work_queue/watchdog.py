"""The watchdog: polls the in-flight tracker, kills workers that hang, and ends runs whose workers never load.
Runs in the driver's loop and never blocks it; knows only the tracker's counts."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray_app.errors import ModelRefused
from ray_app.messages import LOG
from ray_app.work_queue.cards import Card
from ray_app.work_queue.in_flight import Status, Terms, alive_nodes

POLL_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""How long the end of a run waits for the tracker's last count."""
SHORTEST_TIMEOUT = 600.0
"""Seconds that every batch may take: the first one may compile, and the median of few batches means little."""
TIMES_MEDIAN = 20.0
LOADS_TRIED = 4
"""How many workers may die while loading before the run ends, if none has ever loaded."""


class Watchdog:
    """Call `tick` often; it polls the tracker every two seconds.

    Args:
        tracker: its handle.
        timeout: seconds that a batch may take; None for 20 times the median seen, at least 600.
        name: what the workers load, for messages.
        terms: how messages name the rest.
    """

    def __init__(self, tracker: Any, timeout: float | None, name: str, terms: Terms):
        self.tracker, self.timeout, self.name, self.terms = tracker, timeout, name, terms
        self.replays = 0
        self.notices: list[str] = []
        """What workers had to say so far."""
        self.has_worker = False
        """Whether a worker's process has ever started."""
        self.left_out: Mapping[Card, str] = {}
        """The cards that failed too often, with their last error."""
        self.is_idle = True
        """Whether no worker has anything in flight."""
        self._pending_status: Any = None
        self._next_poll = time.monotonic()

    def tick(self) -> None:
        """Act on the tracker's last answer, if there is one.

        Raises:
            Refused: one worker after another died while loading.
        """
        import ray

        if self._pending_status is None:
            if time.monotonic() >= self._next_poll:
                self._pending_status = self.tracker.status.remote(alive_nodes())
            return
        ready, _ = ray.wait([self._pending_status], timeout=0)
        if ready:
            answer: Any = ray.get(self._pending_status)
            self._pending_status, self._next_poll = None, time.monotonic() + POLL_SECONDS
            self._act(answer)

    def count_replays(self) -> int:
        """How many batches were replayed, from the tracker; the last known number if it does not answer."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            if self._pending_status is not None:  # it removed these notices from the tracker: no later answer has them
                last_status: Any = ray.get(self._pending_status, timeout=ANSWER_SECONDS)
                self._pending_status = None
                self._warn(last_status.notices)
            answer: Any = ray.get(self.tracker.finish.remote(), timeout=ANSWER_SECONDS)
            self.replays, notices = answer
            self._warn(notices)
        return self.replays

    def _act(self, status: Status) -> None:
        self.replays = status.replays
        self.has_worker = status.started > 0
        self.left_out, self.is_idle = status.left_out, not status.in_flight
        self._warn(status.notices)
        if not status.loads and status.deaths_while_loading >= LOADS_TRIED:
            raise ModelRefused(
                f"{self.name}: {status.deaths_while_loading} workers died while loading it (out of memory?);"
                " try a smaller model, or a node with more memory"
            )
        limit = self.timeout or max(SHORTEST_TIMEOUT, TIMES_MEDIAN * (status.median_seconds or 0.0))
        for worker, seconds in status.in_flight:
            if seconds > limit:
                LOG.warning(
                    f"Worker {worker[:8]}: batch still running after {seconds:.0f} s (limit {limit:.0f} s,"
                    f" {self.terms.timeout_flag}); restarting the worker."
                )
                self._end(worker)

    def _warn(self, notices: Sequence[str]) -> None:
        self.notices += notices
        for line in notices:
            LOG.warning(line)

    def _end(self, worker: str) -> None:
        """Kill the process on its own node: one that hangs does not react to a request to exit."""
        import ray

        node_id, pid = ray.get(self.tracker.time_out.remote(worker))
        kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
        kill.options(label_selector={"ray.io/node-id": node_id}).remote(pid)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
