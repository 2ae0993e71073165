"""How many actors a cluster can have, now and ever, and what is wrong with a request for more.
Knows GPUs and CPUs of nodes, and what an autoscaler can add; nothing of what actors do."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from ray_app.cluster.autoscaling import Autoscaler
from ray_app.cluster.connection import LivingNode
from ray_app.errors import ClusterRefused
from ray_app.messages import LOG
from ray_app.progress import PoolState

LONG_WAIT_SECONDS = 600.0
"""Clouds add a GPU within minutes; after this long somebody should look at what the autoscaler says."""

ROUNDING = 1e-6
"""Ray counts shares of a GPU in steps of 0.0001."""


@dataclasses.dataclass(frozen=True)
class Request:
    """The actors that a run requests.

    Args:
        gpus_per_actor: 0 for actors that reserve one CPU each.
        workers: MIN and MAX of --num_workers; None for as many actors as the cluster can have.
    """

    gpus_per_actor: float
    workers: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something wrong with a request: the flag, its value and what to do. `prevents_run`: generate refuses it."""

    text: str
    prevents_run: bool


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What the living nodes offer, and what the autoscaler can add; None where there is none."""

    nodes: Sequence[LivingNode]
    autoscaler: Autoscaler | None = None

    def actors_now(self, gpus_per_actor: float) -> int:
        """How many actors the nodes that are up can hold."""
        return sum(_actors_on(node, gpus_per_actor) for node in self.nodes)

    def actors_ever(self, gpus_per_actor: float) -> int:
        """How many actors the cluster can hold once every node is up that the autoscaler may add."""
        now = self.actors_now(gpus_per_actor)
        if not gpus_per_actor or self.autoscaler is None:
            return now
        # the living workers are among the nodes that the autoscaler may have; the head never is
        on_head = sum(_actors_on(node, gpus_per_actor) for node in self.nodes if node.is_head)
        return max(now, on_head + _actors_on_added_nodes(self.autoscaler, gpus_per_actor))

    def actors_ever_without(self, lost: int, gpus_per_actor: float) -> int:
        """The same if so many of its GPUs (CPUs, where actors reserve none) can't be used."""
        return max(0, self.actors_ever(gpus_per_actor) - _actors_fitting(lost, lost, gpus_per_actor))

    def check(self, request: Request) -> Iterator[Finding]:
        """What is wrong with a request, what prevents the run first."""
        gpus, workers = request.gpus_per_actor, request.workers
        most = self.actors_ever(gpus)
        if gpus and not most:
            yield Finding(self._explain_too_few_gpus(gpus), prevents_run=True)
            return
        if workers and workers[1] > most:
            never_enough = bool(gpus and self.autoscaler and workers[0] > most)  # else more nodes may join by hand
            yield Finding(self._explain_too_many_workers(gpus, workers, most), prevents_run=never_enough)
        if gpus > 1:
            text = f"--gpus_per_actor {gpus:g}: an actor uses one GPU, the others would be idle; use --gpus_per_actor 1"
            yield Finding(text, prevents_run=False)

    def choose_pool_size(self, request: Request, batches: int) -> int:
        """How many actors to start: MAX, or all that the cluster can ever have, and never more than there are batches.

        All of them are requested at once, and those without a place wait for one: the run starts with the first.

        Raises:
            Refused: the first finding that prevents the run.
        """
        for finding in self.check(request):
            if finding.prevents_run:
                raise ClusterRefused(finding.text)
        most = request.workers[1] if request.workers else self.actors_ever(request.gpus_per_actor)
        return max(1, min(most, batches))

    def _explain_too_few_gpus(self, gpus_per_actor: float) -> str:
        largest_living = max((node.gpus for node in self.nodes), default=0.0)
        largest_added = 0.0
        can_add = "no autoscaler can add a larger one"
        if self.autoscaler:
            largest_added = max((gpus for gpus, _ in _nodes_to_add(self.autoscaler)), default=0.0)
            can_add = f"the autoscaler can add nodes with at most {largest_added:g}"
        advice = (
            "connect to a cluster with GPUs (--address), or generate on CPUs with --device cpu or --model_path tiny"
            " (without --gpus_per_actor)"
        )
        if largest_living or largest_added:
            advice = "use --gpus_per_actor 1"
        largest = f"the largest node has {largest_living:g} GPUs, and {can_add}"
        return f"--gpus_per_actor {gpus_per_actor:g}: {largest}; {advice}"

    def _explain_too_many_workers(self, gpus_per_actor: float, workers: tuple[int, int], most: int) -> str:
        low, high = workers
        flag = f"--num_workers {_format_workers(low, high)}"
        advice = f"use --num_workers {_format_workers(low, max(1, most))}"
        if not gpus_per_actor:
            return f"{flag}: each actor reserves one CPU, and the cluster has {most}; {advice}"
        room = f"{flag}: with --gpus_per_actor {gpus_per_actor:g} the cluster has room for {most} actors at most"
        if self.autoscaler is None:
            return f"{room}; {advice}, or add nodes"
        return (
            f"{room}, counting the nodes that its autoscaler can add; {advice}, or raise max_workers in the cluster's"
            " configuration"
        )


def _actors_on(node: LivingNode, gpus_per_actor: float) -> int:
    return _actors_fitting(node.gpus, node.cpus, gpus_per_actor)


def _actors_fitting(gpus: float, cpus: float, gpus_per_actor: float) -> int:
    """How many actors fit on a node. A share lies on one GPU: two GPUs hold four actors of 0.4, not five."""
    if not gpus_per_actor:
        return int(cpus)
    if gpus_per_actor < 1:
        return int(gpus) * int(1 / gpus_per_actor + ROUNDING)
    return int(gpus / gpus_per_actor)


def _format_workers(low: int, high: int) -> str:
    """As --num_workers is given: MIN:MAX, or one number."""
    return f"{low}:{high}" if low < high else str(high)


def _nodes_to_add(autoscaler: Autoscaler) -> Iterator[tuple[float, int]]:
    """The nodes that an autoscaler may have at the same time, the largest first: GPUs of a node, number of nodes."""
    nodes_left = autoscaler.max_nodes
    for gpus, most in sorted(autoscaler.types, reverse=True):
        count = min(most, nodes_left)
        nodes_left -= count
        if count:
            yield gpus, count


def _actors_on_added_nodes(autoscaler: Autoscaler, gpus_per_actor: float) -> int:
    return sum(count * _actors_fitting(gpus, 0, gpus_per_actor) for gpus, count in _nodes_to_add(autoscaler))


class PoolWatch:
    """Counts the actors of a run, and says what the run waits for while none is up.

    Args:
        requested: how many actors the run requested.
        count_actors: how many of them are up.
        count_places: how many would fit on the nodes that are up.
        autoscaler: None for a run that only waits for its actors to load.
    """

    def __init__(
        self,
        requested: int,
        count_actors: Callable[[], int],
        count_places: Callable[[], int],
        autoscaler: Autoscaler | None,
    ):
        self.requested, self.autoscaler = requested, autoscaler
        self._count_actors, self._count_places = count_actors, count_places
        self._last_with_actor = self._last_with_place = time.monotonic()
        self._has_warned = False

    def state(self) -> PoolState:
        """The pool now. Warns once, after ten minutes in which the autoscaler added no node."""
        up = self._count_actors()
        waiting_for = None
        if self.autoscaler:
            waiting_for = self._describe_wait(up, self.autoscaler.logs)
        return PoolState(up, self.requested, waiting_for)

    def _describe_wait(self, up: int, logs: str) -> str | None:
        """What a pool without an actor waits for, and since when; None while one is up."""
        now = time.monotonic()
        if up:
            self._last_with_actor = now
        places = up or min(self._count_places(), self.requested)
        if places:
            self._last_with_place, self._has_warned = now, False
        elif not self._has_warned and now - self._last_with_place >= LONG_WAIT_SECONDS:
            self._has_warned = True
            LOG.warning(
                f"no GPU worker came in {LONG_WAIT_SECONDS / 60:.0f} minutes: the autoscaler is dead or the cloud has"
                f" none; it says why in {logs}; the run keeps waiting"
            )
        if up:
            return None
        waits_for = "loading the model" if places else "waiting for the autoscaler"
        return f"{places} of {self.requested} GPU workers up, {waits_for}, {now - self._last_with_actor:.0f} s"
