"""Processes that run the variants without Ray: loaded once, started together, timed from that until the last ends.
Knows arrangements and how slots are distributed; what is generated is in `variants`."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.recipe import Recipe
from jobs.benchmarks.processes import FreshProcesses, fresh_processes, wait_for_the_others

Slot = tuple[int, str, int]


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a variant is spread over the machine: the number of processes, and of threads per process."""

    processes: int
    threads: int

    def __str__(self) -> str:
        processes = "process" if self.processes == 1 else "processes"
        threads = "thread" if self.threads == 1 else "threads"
        return f"{self.processes} {processes}, {self.threads} {threads} each"


def arrangements(cores: int, device: str) -> list[Arrangement]:
    """What to choose from: one process with all threads or, on CPUs only, one 1-thread process per core."""
    if device == "cuda" or cores == 1:
        return [Arrangement(1, cores)]
    return [Arrangement(cores, 1), Arrangement(1, cores)]


class Pool:
    """Processes that generate at the same time, each with the model loaded; `started_pool` makes one."""

    def __init__(self, processes: FreshProcesses, recipe: Recipe, steps: Sequence[int]):
        self._processes, self.recipe, self.steps = processes, recipe, list(steps)

    def load(self) -> None:
        """Load the model in every process.

        Raises:
            Refused: a process can't load it, or has died.
        """
        self._processes.call_in_each(load_model, [(self.recipe,)] * self._processes.count)

    def generate(self, variant: str, shares: Sequence[Sequence[Slot]], threads: int, folder: Path) -> float:
        """Seconds from a common start, after all have warmed up, until the last process has generated its share.

        Raises:
            Refused: a process can't generate, or has died.
        """
        idle: list[list[Slot]] = [[]] * (self._processes.count - len(shares))
        calls = [(self.recipe, self.steps, variant, share, threads, folder) for share in [*shares, *idle]]
        spans = self._processes.call_in_each(generate_share, calls)
        return max(ended for _, ended in spans) - min(began for began, _ in spans)


@contextlib.contextmanager
def started_pool(recipe: Recipe, steps: Sequence[int], processes: int) -> Iterator[Pool]:
    """As many processes as the largest arrangement needs, or none, with the model loaded; they end with the block.

    Raises:
        Refused: a process can't load the model, or has died.
    """
    with fresh_processes(processes) as started:
        pool = Pool(started, recipe, steps)
        pool.load()
        yield pool


def deal(slots: Sequence[Slot], processes: int, batch_size: int = 1) -> list[list[Slot]]:
    """Slots distributed to processes batch by batch, round-robin."""
    shares: list[list[Slot]] = [[] for _ in range(processes)]
    for number, start in enumerate(range(0, len(slots), batch_size)):
        shares[number % processes] += slots[start : start + batch_size]
    return shares


def load_model(recipe: Recipe) -> None:
    _model(recipe)
    wait_for_the_others()


def generate_share(
    recipe: Recipe, steps: list[int], name: str, share: list[Slot], threads: int, folder: Path
) -> tuple[float, float]:
    """When the share was begun and ended, on a clock that all processes of the machine share."""
    import torch

    from jobs.benchmarks.variants import VARIANTS

    torch.set_num_threads(threads)
    variant = VARIANTS[name](_model(recipe), steps, folder)
    with variant.ready(share):
        variant.warm_up(share)
        wait_for_the_others()
        began = time.monotonic()
        variant.generate(share)
        ended = time.monotonic()
        variant.show()
    return began, ended


@functools.cache
def _model(recipe: Recipe) -> Any:
    """The loaded model of this process."""
    from actors import pipelines

    return pipelines.load(recipe)
