"""The in-flight tracker: an actor that knows what each worker is doing, so that it is known when a worker dies.
Knows ids and clocks, not what the work is. Limits how often Ray replays the batch of a dead actor."""

import contextlib
import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_app.work_queue.cards import FAILURES, Card, CardRecords, Holders

ALONE_TRIES = 2
"""How often a worker may die with the same item, run on its own, before the item is given up."""
NODES_EXCUSED = 3
"""How many deaths of workers do not count against a batch or an item because the whole node was lost, as a spot node
that was preempted. Not more, since an item may also use up all of a node's memory."""
MEDIAN_OF = 1_000
NOTICE_SECONDS = 5.0
MOST_NOTICES = 100
"""How many different notices of workers a run prints."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """How messages name the parts of the work."""

    item: str = "item"
    timeout_error: str = "Timeout"
    """The error type of an item that is given up because it exceeded the time limit."""
    timeout_flag: str = "the time limit"
    """The flag that sets the time limit."""


@dataclasses.dataclass
class InFlight:
    """A batch that a worker is processing, or one item of a batch that a worker died with."""

    worker: str
    node: str | None
    started: float
    is_one_item: bool = False
    is_waiting: bool = False
    """Begun and prepared, while the worker processes another batch. No time limit applies."""
    timed_out: bool = False
    node_died: bool = False
    nodes_lost: int = 0
    card_failed: bool = False


@dataclasses.dataclass
class Suspect:
    """An item that runs on its own, since a worker died with its batch."""

    tries: int = 0
    cause: str = "WorkerDied"
    nodes_lost: int = 0
    in_flight: InFlight | None = None


@dataclasses.dataclass(frozen=True)
class Status:
    """What the driver polls."""

    started: int
    """Workers whose process has started: each reports this before it loads anything."""
    loads: int
    deaths_while_loading: int
    replays: int
    median_seconds: float | None
    in_flight: list[tuple[str, float]]  # worker, and seconds since it began
    notices: Sequence[str] = ()  # from workers, since the last status; per topic only the first
    left_out: Mapping[Card, str] = dataclasses.field(default_factory=dict)
    """The cards that failed too often, with their last error."""


class InFlightTracker:
    """Workers report what they begin and finish, and wait until each report is stored.

    Args:
        terms: how messages name things.
        alive_nodes: returns the ids of the nodes that are alive; None to know only those passed to `status`.
        holders: keep workers away from cards that are left out; None to leave that to the caller.
    """

    def __init__(
        self,
        terms: Terms | None = None,
        alive_nodes: Callable[[], set[str]] | None = None,
        holders: Holders | None = None,
    ) -> None:
        self._terms = terms or Terms()
        self._alive_nodes = alive_nodes
        self._holders = holders
        self._cards = CardRecords()
        self._card_of: dict[str, Card] = {}
        self._places: dict[str, tuple[str, int]] = {}
        self._loading: set[str] = set()
        self._loads = self._deaths_while_loading = self._replays = 0
        self._batches: dict[str, InFlight] = {}
        self._suspects: dict[str, Suspect] = {}
        self._seconds: deque[float] = deque(maxlen=MEDIAN_OF)
        self._noticed: set[str] = set()
        self._notices: list[str] = []

    def notice(self, line: str, topic: str) -> None:
        """A worker or a writer has something to report; only the first line of a topic is kept, whoever reports it."""
        if topic not in self._noticed and len(self._noticed) < MOST_NOTICES:
            self._noticed.add(topic)
            self._notices.append(line)

    def loading(self, worker: str, node_id: str, pid: int, card: Card | None = None) -> bool:
        """A worker begins to load; if it had begun before, it died while loading. False: it must not use its card."""
        self._deaths_while_loading += worker in self._loading
        self._loading.discard(worker)
        if card is not None and card in self._cards.left_out:
            self._keep_out(card)
            return False
        self._loading.add(worker)
        self._places[worker] = (node_id, pid)
        if card is not None:
            self._card_of[worker] = card
        return True

    def loaded(self, worker: str) -> None:
        """A worker has finished loading."""
        self._loading.discard(worker)
        self._loads += 1

    def card_failed(self, worker: str, batch: str | None, error: str) -> None:
        """A worker is about to end, since its card has failed: with a batch, or while it loaded.

        What the worker has in flight is not to blame, unless the batch fails on card after card, or again on the last.
        """
        self._loading.discard(worker)
        card = self._card_of.get(worker)
        if card is None:
            return
        others = {*self._card_of.values()} - {card, *self._cards.left_out}
        is_cards_fault = self._cards.failed(card, batch, error, self._item_alone(batch), is_last=not others)
        for other, in_flight in self._batches.items():
            if in_flight.worker == worker:
                in_flight.card_failed = is_cards_fault or other != batch
        if card in self._cards.left_out:
            self.notice(
                f"{card}: failed {FAILURES} times in a row, and is left out of this run: {error}", f"{card} out"
            )
            self._keep_out(card)
        else:
            self.notice(f"{card}: {error}; restarting its worker", f"{card} failed")
        if self._holders is not None:
            self._holders.release(self._cards.left_out)

    def _item_alone(self, batch: str | None) -> str | None:
        """Which item of a batch is being processed, if they run one by one."""
        current = self._batches.get(batch or "")
        alone = (item for item, suspect in self._suspects.items() if suspect.in_flight is current is not None)
        return next(alone, None)

    def _keep_out(self, card: Card) -> None:
        if self._holders is not None:
            self._holders.hold(card)

    def begin(self, batch: str, worker: str) -> bool:
        """A worker begins a batch. False: another worker died with it, so its items are to run one by one.

        A card that failed, or a lost node, says nothing about the batch that its worker had: the next try counts as the
        first one again.
        """
        previous = self._batches.get(batch)
        current = self._batches[batch] = self._in_flight(worker)
        if previous is None:
            return True
        self._replays += 1
        is_node_excused = self._is_node_lost(previous) and previous.nodes_lost < NODES_EXCUSED
        current.nodes_lost = previous.nodes_lost + is_node_excused
        current.is_one_item = previous.is_one_item or not (is_node_excused or previous.card_failed)
        return not current.is_one_item

    def wait_for_turn(self, batch: str) -> None:
        """A batch is prepared, and its worker may be processing another one."""
        self._batches[batch].is_waiting = True

    def take_turn(self, batch: str) -> None:
        """A worker processes a batch that was waiting: its time starts now."""
        in_flight = self._batches[batch]
        in_flight.started, in_flight.is_waiting = time.monotonic(), False

    def begin_alone(self, batch: str, item: str, worker: str) -> tuple[str, str] | None:
        """A worker begins one item of such a batch.

        If workers died with it too often: why it is given up, as error type and message; the item must not run then.
        """
        suspect = self._suspects.setdefault(item, Suspect())
        previous = suspect.in_flight
        if previous is not None and previous.timed_out:
            suspect.cause = self._terms.timeout_error
        if previous is not None and previous.card_failed:
            suspect.tries -= 1
        elif previous is not None and suspect.nodes_lost < NODES_EXCUSED and self._is_node_lost(previous):
            suspect.nodes_lost += 1
            suspect.tries -= 1
        # the batch's entry now stands for this item: the time limit is per item from here on
        current = self._batches[batch] = self._in_flight(worker)
        current.is_one_item = True
        if suspect.tries >= ALONE_TRIES:
            suspect.in_flight = None
            return self._give_up_reason(suspect)
        suspect.tries += 1
        suspect.in_flight = current
        return None

    def end_alone(self, item: str) -> None:
        """The item is done, or failed without killing its worker."""
        suspect = self._suspects.pop(item, None)
        if suspect is not None and suspect.in_flight is not None and suspect.in_flight.worker in self._card_of:
            self._cards.worked_alone(self._card_of[suspect.in_flight.worker])

    def end(self, batch: str) -> None:
        """The batch is done."""
        self._cards.forget(batch)
        finished = self._batches.pop(batch, None)
        if finished is not None and finished.worker in self._card_of:
            self._cards.worked(self._card_of[finished.worker])
        if finished is not None:
            self._seconds.append(time.monotonic() - finished.started)

    def status(self, nodes: set[str]) -> Status:
        """Counts, and for how long each worker on these nodes has been busy; all other nodes are dead."""
        now = time.monotonic()
        if self._holders is not None:
            self._holders.look(self._cards.left_out)
        for in_flight in self._batches.values():
            in_flight.node_died = in_flight.node not in nodes
        return Status(
            started=len(self._places),
            loads=self._loads,
            deaths_while_loading=self._deaths_while_loading,
            replays=self._replays,
            median_seconds=statistics.median(self._seconds) if self._seconds else None,
            in_flight=[
                (in_flight.worker, now - in_flight.started)
                for in_flight in self._batches.values()
                if not (in_flight.is_waiting or in_flight.timed_out or in_flight.node_died or in_flight.card_failed)
            ],
            notices=self._take_notices(),
            left_out=dict(self._cards.left_out),
        )

    def finish(self) -> tuple[int, list[str]]:
        """At a run's end: how many batches began again after a worker died with them, and the remaining notices."""
        if self._holders is not None:
            self._holders.release({})
        return self._replays, self._take_notices()

    def _take_notices(self) -> list[str]:
        taken, self._notices = self._notices, []
        return taken

    def _in_flight(self, worker: str) -> InFlight:
        node, _ = self._places.get(worker, (None, None))
        return InFlight(worker, node, time.monotonic())

    def _is_node_lost(self, in_flight: InFlight) -> bool:
        if in_flight.node_died:
            return True
        return self._alive_nodes is not None and in_flight.node not in self._alive_nodes()

    def time_out(self, worker: str) -> tuple[str, int]:
        """A worker takes too long for a batch or an item; its node and process id, so that it can be killed."""
        for in_flight in self._batches.values():
            if in_flight.worker == worker:
                in_flight.timed_out = True
        return self._places[worker]

    def _give_up_reason(self, suspect: Suspect) -> tuple[str, str]:
        """As error type and message."""
        terms, tries = self._terms, suspect.tries
        if suspect.cause == terms.timeout_error:
            reason = f"exceeded the time limit {tries} times ({terms.timeout_flag})"
        else:
            reason = f"crashed the worker {tries} times (crash or out of memory)"
        return suspect.cause, f"Run on its own, this {terms.item} {reason}."


class Notices:
    """Sends notices to the tracker, and waits until it has them: the run may end a moment later."""

    def __init__(self, tracker: Any):
        self._tracker = tracker

    def __call__(self, line: str, topic: str) -> None:
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(RayError):  # without a tracker nobody would read it
            ray.get(self._tracker.notice.remote(line, topic), timeout=NOTICE_SECONDS)


def start(node_id: str, terms: Terms, holders: Holders | None = None) -> Any:
    """A tracker on the driver's node; its handle."""
    import ray

    tracker = ray.remote(num_cpus=0)(InFlightTracker).options(label_selector={"ray.io/node-id": node_id})
    return tracker.remote(terms, alive_nodes, holders)


def alive_nodes() -> set[str]:
    """Ids of the nodes that are alive."""
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
