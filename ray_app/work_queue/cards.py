"""Cards: what a worker computes on, which of them fail in a row, and how the failed ones are kept from other workers.
Knows ids, counts and reservations of Ray; nothing of what a card does."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ray_app import machine

FAILURES = 2
"""How often a card may fail in a row before it is left out."""
FEW_BATCHES = 3
"""A card that has done so many batches since it failed has recovered."""
CARDS_EXCUSED = 2
"""On how many cards a batch may fail together with the card. On one more, the batch is to blame and not the cards."""


@dataclasses.dataclass(frozen=True)
class Card:
    """The GPU, or the GPUs, that a worker has reserved.

    Args:
        node_id: Ray's id of the node.
        ids: as Ray numbers them on the node.
        label: what a message calls them.
    """

    node_id: str
    ids: tuple[str, ...]
    label: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return self.label or f"GPU {','.join(self.ids)} of node {self.node_id[:8]}"


def reserved() -> Card | None:
    """The card that Ray has reserved for this actor; None for an actor without a GPU."""
    import ray

    ids = tuple(map(str, ray.get_gpu_ids()))
    if not ids:
        return None
    uuids = dict(machine.query_gpus("index", "uuid"))
    known = ", ".join(uuids[index] for index in ids if index in uuids)
    label = f"GPU {','.join(ids)}{f' ({known})' if known else ''} of node {ray.util.get_node_ip_address()}"
    return Card(ray.get_runtime_context().get_node_id(), ids, label)


@dataclasses.dataclass
class History:
    """What happened on a card since it last recovered."""

    failures: list[str | None] = dataclasses.field(default_factory=list)
    """The batch of each failure; None for a failure while a worker loaded."""
    batches_since: int = 0
    items: set[str] = dataclasses.field(default_factory=set)
    """Items of a blamed batch that the card failed with, run alone, since one of them was done."""


class CardRecords:
    """Which cards failed, with which batches, and which of them are left out."""

    def __init__(self) -> None:
        self._histories: dict[Card, History] = {}
        self._failed_on: dict[str, set[Card]] = {}
        self._left_out: dict[Card, str] = {}
        self._blamed: set[str] = set()

    @property
    def left_out(self) -> Mapping[Card, str]:
        """Each card that is left out, with its last error."""
        return self._left_out

    def worked(self, card: Card) -> None:
        """A batch was done on a card."""
        history = self._histories.setdefault(card, History())
        history.batches_since += 1
        if history.batches_since >= FEW_BATCHES:
            history.failures.clear()

    def worked_alone(self, card: Card) -> None:
        """An item of a blamed batch was done on a card, so others of it are to blame."""
        self._histories.setdefault(card, History()).items.clear()

    def failed(self, card: Card, batch: str | None, error: str, item: str | None = None, is_last: bool = False) -> bool:
        """A card failed with a batch, or while a worker loaded; whether the card is to blame and not the batch.

        Args:
            item: which of the batch's items, if they run one by one.
            is_last: no other card is left that could show whether the batch is the reason.
        """
        history = self._histories.setdefault(card, History())
        if batch is not None:
            self._failed_on.setdefault(batch, set()).add(card)
            if batch in self._blamed:
                return self._failed_alone(card, batch, error, item)
        history.failures.append(batch)
        history.batches_since = 0
        if batch is not None and self._is_reason(batch, history, is_last):
            self._blamed.add(batch)
            self._clear_of(batch)
            return False
        if len(history.failures) >= FAILURES:
            self._left_out[card] = error
        return True

    def _is_reason(self, batch: str, history: History, is_last: bool) -> bool:
        """Whether a batch failed on so many cards that it is the reason, or, without other cards, again on this one."""
        if len(self._failed_on[batch]) > CARDS_EXCUSED:
            return True
        return is_last and len(history.failures) >= FAILURES and set(history.failures) == {batch}

    def _failed_alone(self, card: Card, batch: str, error: str, item: str | None) -> bool:
        """A card failed with an item of a blamed batch. If it does with one after another, few cards were too few."""
        history = self._histories[card]
        if item is not None:
            history.items.add(item)
        if len(self._failed_on[batch]) <= CARDS_EXCUSED and len(history.items) >= FAILURES:
            self._left_out[card] = error
            return True
        return False

    def is_blamed(self, batch: str) -> bool:
        """Whether the batch is taken for the reason why cards failed with it."""
        return batch in self._blamed

    def forget(self, batch: str) -> None:
        """The batch is done."""
        self._failed_on.pop(batch, None)
        self._blamed.discard(batch)

    def _clear_of(self, batch: str) -> None:
        """Use those cards again that were left out for this batch."""
        for card in self._failed_on[batch]:
            history = self._histories[card]
            history.failures = [other for other in history.failures if other != batch]
            if len(history.failures) < FAILURES:
                self._left_out.pop(card, None)


class Holder:
    """An actor that takes a worker's place on a card that is left out, so that Ray places no worker there."""

    def __init__(self, worker: Any):
        self._worker = worker

    def card(self) -> Card | None:
        """The card that Ray gave to this holder: another one of its node, perhaps."""
        return self._worker.card()


class Holders:
    """Reserves the cards that are left out, one holder after the other on each.

    Ray takes no request for one particular GPU of a node: a holder that got another card keeps it until the right one
    is held, since Ray would give it the same one again.

    Args:
        worker: the class whose `card` says which card a process has.
        resources: what a worker reserves, as arguments of `ray.remote`.
    """

    def __init__(self, worker: Any, resources: Mapping[str, Any]):
        self._worker, self._resources = worker, dict(resources)
        self._starting: dict[Any, tuple[Card, Any]] = {}  # by the answer that is awaited
        self._holding: dict[Card, list[Any]] = {}
        self._misplaced: dict[str, list[Any]] = {}  # by node

    def hold(self, card: Card) -> None:
        """Start a holder for a card, if none is on its way."""
        import ray

        if any(wanted == card for wanted, _ in self._starting.values()):
            return
        on_node = {"label_selector": {"ray.io/node-id": card.node_id}}
        holder = ray.remote(**self._resources)(Holder).options(**on_node).remote(self._worker)
        self._starting[holder.card.remote()] = (card, holder)

    def look(self, left_out: Mapping[Card, str]) -> None:
        """See which holders have come up, and on which cards. Does not wait."""
        import ray
        from ray.exceptions import RayError

        if not self._starting:
            return
        ready, _ = ray.wait([*self._starting], num_returns=len(self._starting), timeout=0)
        for answer in ready:
            wanted, holder = self._starting.pop(answer)
            got = None
            with contextlib.suppress(RayError):  # with its node, say; whoever comes to the card again asks again
                got = ray.get(answer)
            if got is None:
                continue
            if got in left_out:
                self._holding.setdefault(got, []).append(holder)
            else:
                self._misplaced.setdefault(wanted.node_id, []).append(holder)
            if got == wanted:
                self._end(self._misplaced.pop(wanted.node_id, []))
            else:
                self.hold(wanted)

    def release(self, still_left_out: Mapping[Card, str]) -> None:
        """End the holders of all other cards."""
        for answer, (card, holder) in [*self._starting.items()]:
            if card not in still_left_out:
                del self._starting[answer]
                self._end([holder])
        for card in [card for card in self._holding if card not in still_left_out]:
            self._end(self._holding.pop(card))
        for node in [node for node in self._misplaced if all(card.node_id != node for card in still_left_out)]:
            self._end(self._misplaced.pop(node))

    def _end(self, holders: list[Any]) -> None:
        import ray

        for holder in holders:
            ray.kill(holder)
