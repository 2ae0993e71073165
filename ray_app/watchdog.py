"""The watchdog: looks at the ledger now and then, ends workers that hang and runs whose model never loads.
Lives in the driver's loop and never blocks it; knows the ledger's counts only."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from ray_app.errors import ModelRefused
from ray_app.ledger import Status, alive_nodes
from ray_app.messages import LOG

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 5.0
"""For which the end of a run waits for the ledger's last count."""
SHORTEST_TIMEOUT = 600.0
"""Seconds that a batch may always take: a first one may compile, and medians of few batches mean little."""
TIMES_MEDIAN = 20.0
LOADS_TRIED = 4
"""Workers that may die while loading, none ever having loaded, before the run ends."""


class Watchdog:
    """Ask it often; it asks the ledger every two seconds.

    Args:
        ledger: its handle.
        denoise_timeout: seconds a batch may take; None for 20 times the median seen, at least 600.
        model: for the message.
    """

    def __init__(self, ledger: Any, denoise_timeout: float | None, model: str):
        self.ledger, self.denoise_timeout, self.model = ledger, denoise_timeout, model
        self.replays = 0
        self._asked: Any = None
        self._next = time.monotonic()

    def tick(self) -> None:
        """Look at what the ledger answered, and act.

        Raises:
            Refused: worker after worker died while loading the model.
        """
        import ray

        if self._asked is None:
            if time.monotonic() >= self._next:
                self._asked = self.ledger.status.remote(alive_nodes())
            return
        ready, _ = ray.wait([self._asked], timeout=0)
        if ready:
            answer: Any = ray.get(self._asked)
            self._asked, self._next = None, time.monotonic() + LOOK_SECONDS
            self._act(answer)

    def count_replays(self) -> int:
        """Batches replayed, as the ledger says at the end; what was known last if it does not answer."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):
            answer: Any = ray.get(self.ledger.finish.remote(), timeout=ANSWER_SECONDS)
            self.replays, notices = answer
            _tell(notices)
        return self.replays

    def _act(self, status: Status) -> None:
        self.replays = status.replays
        _tell(status.notices)
        if not status.loads and status.deaths_while_loading >= LOADS_TRIED:
            raise ModelRefused(
                f"{self.model}: {status.deaths_while_loading} workers died while loading it (out of memory?);"
                " try a smaller model, or a node with more memory"
            )
        limit = self.denoise_timeout or max(SHORTEST_TIMEOUT, TIMES_MEDIAN * (status.median_seconds or 0.0))
        for worker, seconds in status.in_flight:
            if seconds > limit:
                LOG.warning(
                    f"worker {worker[:8]} has drawn one batch for {seconds:.0f} s (limit {limit:.0f} s,"
                    " --denoise_timeout); it is replaced"
                )
                self._end(worker)

    def _end(self, worker: str) -> None:
        """Kill the process on its own node: one that hangs answers no request to leave."""
        import ray

        node_id, pid = ray.get(self.ledger.time_out.remote(worker))
        kill = ray.remote(num_cpus=0, max_retries=0)(_kill)
        kill.options(label_selector={"ray.io/node-id": node_id}).remote(pid)


def _tell(notices: Sequence[str]) -> None:
    for line in notices:
        LOG.warning(line)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
