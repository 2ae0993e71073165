"""Worker: what an actor of the pool runs. It reports what it has in flight, and gives up an item that kills workers.
Knows batches, items and the tracker; what is done with them is a subclass's."""

import dataclasses
import os
import threading
import time
from typing import Any, ClassVar, NoReturn

import pyarrow as pa

from ray_app import messages
from ray_app.errors import one_line
from ray_app.work_queue import cards
from ray_app.work_queue.in_flight import Notices


@dataclasses.dataclass(frozen=True)
class Begun:
    """A batch that is to be processed: prepared, or item by item since a worker died with it."""

    is_replay: bool
    prepared: Any = None


class Worker:
    """One actor of the pool: loads once, and works on batches until the run ends.

    Ray replays a batch that a worker died with: then its items run one by one, and an item whose worker dies again is
    given up. Two threads may call it: while one finishes its batch, the other processes the next one.

    Args:
        tracker: handle of an `in_flight.InFlightTracker`.
        arguments: of `load`.
    """

    ITEM: ClassVar[str]
    """The column of a batch that names its items; messages name a batch by its first item."""
    PREPARES: ClassVar[bool] = False
    """Whether `prepare` has work to do, which is done while the last batch is processed. `load` may set `prepares`."""
    LOADED_ELSEWHERE: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors of `load` after which Ray starts another worker, on another node perhaps."""
    CARD_FAILED: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors of `load` and `process` after which this process can't use its card any more: the process ends, Ray starts
    another, and what was in flight is processed again as if it had not begun. Other errors of `load` end the run."""

    def __init__(self, tracker: Any, *arguments: Any):
        import ray

        context = ray.get_runtime_context()
        self.actor_id, self.node_id = context.get_actor_id(), context.get_node_id()
        self.tracker = tracker
        self.prepares = self.PREPARES
        self._turn = threading.Lock()
        self._load_error: Exception | None = None
        messages.send_to_driver(Notices(tracker))
        card = self.card()
        if not self._report("loading", self.actor_id, self.node_id, os.getpid(), card):
            os._exit(1)  # the card is left out, and another process is about to take it; Ray starts this one again
        try:
            self.loaded = self.load(*arguments)
        except Exception as error:
            if card is not None and isinstance(error, (*self.CARD_FAILED, *self.LOADED_ELSEWHERE)):
                self._end_for_card(None, error)  # raised, Ray Data would count it, and end runs that have other cards
            if isinstance(error, self.LOADED_ELSEWHERE):
                raise
            self._load_error = self.explain(error, *arguments)
        else:
            self._report("loaded", self.actor_id)
        self._idle_since = time.monotonic()

    @classmethod
    def card(cls) -> cards.Card | None:
        """What this process computes on; None where no failure is put down to one card. Called before `load`."""
        return cards.reserved()

    def load(self, *arguments: Any) -> Any:
        """What the work needs, kept as `loaded`."""
        raise NotImplementedError

    def explain(self, error: Exception, *arguments: Any) -> Exception:
        """The exception to raise for an error of `load`: one whose message a user understands."""
        return error

    def prepare(self, batch: dict[str, list[Any]]) -> Any:
        """What `process` gets of a batch, by default the batch itself. May run while another batch is processed."""
        return batch

    def process(self, batch: Any) -> list[Any]:
        """The results of a batch's items, one after the other. One call at a time.

        Args:
            batch: what `prepare` returned.
        """
        raise NotImplementedError

    def give_up(self, item: dict[str, list[Any]], error_type: str, message: str) -> list[Any]:
        """The results of an item that is not processed, and why. `item`: a batch of one."""
        raise NotImplementedError

    def finish(self, batch: dict[str, list[Any]], results: list[Any], idle_seconds: float) -> pa.Table:
        """The rows of a batch, one per item and in the same order. May run while the next batch is processed.

        Args:
            results: of `process` or `give_up`.
            idle_seconds: how long this actor was idle before the batch.
        """
        raise NotImplementedError

    def __call__(self, table: pa.Table) -> pa.Table:
        """A batch in, its rows out."""
        if self._load_error is not None:
            raise self._load_error  # ends the run at once; raised in __init__, it would make Ray start more workers
        batch = table.to_pydict()
        batch_id = batch[self.ITEM][0]
        begun = None
        if self.prepares:
            begun = self._begin(batch_id, batch)
            self._report("wait_for_turn", batch_id)
        with self._turn:
            idle_seconds = time.monotonic() - self._idle_since
            if begun is None:
                begun = self._begin(batch_id, batch)
            else:
                self._report("take_turn", batch_id)
            try:
                results = self._one_by_one(batch_id, batch) if begun.is_replay else self.process(begun.prepared)
            except self.CARD_FAILED as error:
                self._end_for_card(batch_id, error)
            self._idle_since = time.monotonic()
        rows = self.finish(batch, results, idle_seconds)
        self._report("end", batch_id)
        return rows

    def _begin(self, batch_id: str, batch: dict[str, list[Any]]) -> "Begun":
        if self._report("begin", batch_id, self.actor_id):
            return Begun(False, self.prepare(batch))
        return Begun(True)

    def _end_for_card(self, batch_id: str | None, error: Exception) -> NoReturn:
        """End this process, when the tracker knows why. Without the interpreter's shutdown: that may wait for a GPU."""
        self._report("card_failed", self.actor_id, batch_id, one_line(error))
        os._exit(1)

    def _one_by_one(self, batch_id: str, batch: dict[str, list[Any]]) -> list[Any]:
        """The results of a batch that a worker died with."""
        results: list[Any] = []
        for place, item_id in enumerate(batch[self.ITEM]):
            item = {name: values[place : place + 1] for name, values in batch.items()}
            error = self._report("begin_alone", batch_id, item_id, self.actor_id)
            if error is not None:
                results += self.give_up(item, *error)
                continue
            results += self.process(self.prepare(item))
            self._report("end_alone", item_id)
        return results

    def _report(self, event: str, *arguments: Any) -> Any:
        """Report to the tracker and wait: what it has not stored when this process dies is lost."""
        import ray

        return ray.get(getattr(self.tracker, event).remote(*arguments))
