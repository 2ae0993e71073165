"""The ledger: an actor beside the workers that remembers what was in flight when one of them died.
Knows ids and clocks; nothing of images. Ray replays a dead actor's batch for ever: this is what ends it."""

import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

ALONE_TRIES = 2
"""Deaths of a worker with one and the same prompt, drawn alone, before the prompt is given up."""
NODES_EXCUSED = 3
"""Deaths with a batch, or with a prompt drawn alone, that are not held against it because the whole node went: a spot
worker was taken, say. Not more, since a prompt may also take all of a node's memory."""
MEDIAN_OF = 1_000
MOST_NOTICES = 100
"""Different lines of workers that a run tells."""


@dataclasses.dataclass
class InFlight:
    """A batch at a worker, or one prompt of a batch that a worker died with."""

    worker: str
    node: str | None
    started: float
    alone: bool = False
    timed_out: bool = False
    node_died: bool = False
    nodes_lost: int = 0


@dataclasses.dataclass
class Suspect:
    """A prompt that is drawn alone, since a worker died with its batch."""

    tries: int = 0
    cause: str = "WorkerDied"
    nodes_lost: int = 0
    in_flight: InFlight | None = None


@dataclasses.dataclass(frozen=True)
class Status:
    """What the driver asks for now and then."""

    loads: int
    deaths_while_loading: int
    replays: int
    median_seconds: float | None
    in_flight: list[tuple[str, float]]  # worker and seconds since it began
    notices: Sequence[str] = ()  # what workers had to say since the last time, of a topic the first line


class Ledger:
    """Workers report what they begin and finish, in calls that return before they go on.

    Args:
        alive_nodes: ids of the nodes that are there; None to know only what `status` was told.
    """

    def __init__(self, alive_nodes: Callable[[], set[str]] | None = None) -> None:
        self._alive_nodes = alive_nodes
        self._places: dict[str, tuple[str, int]] = {}
        self._loading: set[str] = set()
        self._loads = self._deaths_while_loading = self._replays = 0
        self._batches: dict[str, InFlight] = {}
        self._suspects: dict[str, Suspect] = {}
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._noticed: set[str] = set()
        self._notices: list[str] = []

    def notice(self, line: str, topic: str) -> None:
        """A worker or a writer has something to say; of a topic the first line is told, whoever says it."""
        if topic not in self._noticed and len(self._noticed) < MOST_NOTICES:
            self._noticed.add(topic)
            self._notices.append(line)

    def loading(self, worker: str, node_id: str, pid: int) -> None:
        """A worker begins to load the model; if it had begun before, it died of it."""
        self._deaths_while_loading += worker in self._loading
        self._loading.add(worker)
        self._places[worker] = (node_id, pid)

    def loaded(self, worker: str) -> None:
        """It has loaded the model."""
        self._loading.discard(worker)
        self._loads += 1

    def begin(self, batch: str, worker: str) -> bool:
        """A worker begins a batch. False: another died with it, so its prompts are to be drawn one by one.

        One that went with its whole node, a spot worker say, says nothing about the batch: that is a first try again.
        """
        before = self._batches.get(batch)
        current = self._batches[batch] = self._in_flight(worker)
        if before is None:
            return True
        self._replays += 1
        excused = self._went_with_its_node(before) and before.nodes_lost < NODES_EXCUSED
        current.nodes_lost = before.nodes_lost + excused
        current.alone = before.alone or not excused
        return not current.alone

    def begin_alone(self, batch: str, prompt: str, worker: str) -> tuple[str, str] | None:
        """A worker begins one prompt of such a batch. If it killed often enough: why it is given up, type and words."""
        suspect = self._suspects.setdefault(prompt, Suspect())
        before = suspect.in_flight
        if before is not None and before.timed_out:
            suspect.cause = "DenoiseTimeout"
        if before is not None and suspect.nodes_lost < NODES_EXCUSED and self._went_with_its_node(before):
            suspect.nodes_lost += 1
            suspect.tries -= 1
        current = self._batches[batch] = self._in_flight(worker)  # from here on the prompt is watched, not the batch
        current.alone = True
        if suspect.tries >= ALONE_TRIES:
            suspect.in_flight = None
            return _why(suspect.cause, suspect.tries)
        suspect.tries += 1
        suspect.in_flight = current
        return None

    def end_alone(self, prompt: str) -> None:
        """The prompt came out, or failed without killing anybody."""
        self._suspects.pop(prompt, None)

    def end(self, batch: str) -> None:
        """The batch came out."""
        unit = self._batches.pop(batch, None)
        if unit is not None:
            self._seconds.append(time.monotonic() - unit.started)

    def status(self, nodes: set[str]) -> Status:
        """Counts, and how long what is in flight on these nodes has been; all others are dead."""
        now = time.monotonic()
        for unit in self._batches.values():
            unit.node_died = unit.node not in nodes
        return Status(
            loads=self._loads,
            deaths_while_loading=self._deaths_while_loading,
            replays=self._replays,
            median_seconds=statistics.median(self._seconds) if self._seconds else None,
            in_flight=[
                (unit.worker, now - unit.started)
                for unit in self._batches.values()
                if not unit.timed_out and not unit.node_died
            ],
            notices=self._take_notices(),
        )

    def finish(self) -> tuple[int, list[str]]:
        """At a run's end: batches that began again after a worker died with them, and the notices not yet told."""
        return self._replays, self._take_notices()

    def _take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def _in_flight(self, worker: str) -> InFlight:
        node, _ = self._places.get(worker, (None, None))
        return InFlight(worker, node, time.monotonic())

    def _went_with_its_node(self, unit: InFlight) -> bool:
        return unit.node_died or (self._alive_nodes is not None and unit.node not in self._alive_nodes())

    def time_out(self, worker: str) -> tuple[str, int]:
        """A worker has been at one thing for too long; its node and process id, to be killed."""
        for unit in self._batches.values():
            if unit.worker == worker:
                unit.timed_out = True
        return self._places[worker]


def _why(cause: str, tries: int) -> tuple[str, str]:
    if cause == "DenoiseTimeout":
        return cause, f"drawn alone, this prompt did not end in time, {tries} times"
    return cause, f"drawn alone, this prompt ended the worker's process, {tries} times (a crash, or memory)"


def start(node_id: str) -> Any:
    """A ledger on the driver's node; its handle."""
    import ray

    ledger = ray.remote(num_cpus=0)(Ledger).options(label_selector={"ray.io/node-id": node_id})
    return ledger.remote(alive_nodes)


def alive_nodes() -> set[str]:
    """Ids of the nodes that are there."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
