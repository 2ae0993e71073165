"""What the workers did in a benchmark, and when: one line per piece of work in a file per actor, and shares of time.
Knows an image generator's timings; changes nothing that it does."""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from actors.recipe import Capture, Recipe
from actors.timing import Timing, Work
from ray_app.generation.worker import ImageWorker

WORK: tuple[Work, ...] = get_args(Work)
"""What an actor does, in the order of a batch; the rest of its time it waits."""


class TimingsFile:
    """Writes the timings of one image generator to a file of its own in `folder`."""

    def __init__(self, folder: Path):
        name = f"{os.getpid()}-{time.time_ns()}.jsonl"
        self._file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write(self, timing: Timing) -> None:
        """Append one, in one piece: two threads may write at once, and an actor that is killed leaves no half line."""
        line = json.dumps(dataclasses.asdict(timing))
        os.write(self._file, f"{line}\n".encode())


def timed_worker(folder: Path) -> type[ImageWorker]:
    """A worker whose generator's timings are written to `folder`, which every node must reach."""

    class TimedWorker(ImageWorker):
        """Defined here so that it is sent to the actors together with its folder."""

        def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
            generator = super().load(recipe, captures, threads)
            generator.on_timing = TimingsFile(folder).write
            return generator

    return TimedWorker


def read(folder: Path) -> list[list[Timing]]:
    """Each actor's timings; none for one that has loaded and got no batch."""
    files = sorted(folder.glob("*.jsonl"))
    return [_read_file(file) for file in files]


def _read_file(file: Path) -> list[Timing]:
    lines = file.read_text().splitlines()
    return [Timing(**json.loads(line)) for line in lines]


def first(actors: Sequence[Sequence[Timing]]) -> float:
    """When the first of them began."""
    return min(timing.began for timing in _all(actors))


def first_end(actors: Sequence[Sequence[Timing]], work: Work) -> float:
    """When the first piece of some kind of work ended."""
    return min(timing.began + timing.seconds for timing in _all(actors) if timing.work == work)


def shares(actors: Sequence[Sequence[Timing]], began: float, ended: float) -> dict[str, float]:
    """Of the actors' time between two moments, the share of each kind of work, and of waiting.

    Work that is done while other work is done counts for both, so that shares can add up to more than one; waiting is
    the time in which nothing is done.
    """
    whole = (ended - began) * len(actors)
    spent: dict[str, float] = dict.fromkeys(WORK, 0.0)
    for timing in _all(actors):
        spent[timing.work] += timing.seconds
    busy = sum(_busy_seconds(timings) for timings in actors)
    return {**{work: seconds / whole for work, seconds in spent.items()}, "waiting": 1 - busy / whole}


def had_core(actors: Sequence[Sequence[Timing]]) -> float:
    """Share of their working time in which 1-thread actors had a core; for the rest other processes had it."""
    timings = list(_all(actors))
    cpu_seconds = sum(timing.cpu_seconds for timing in timings)
    return cpu_seconds / sum(timing.seconds for timing in timings)


def _all(actors: Sequence[Sequence[Timing]]) -> Iterator[Timing]:
    return itertools.chain.from_iterable(actors)


def _busy_seconds(timings: Sequence[Timing]) -> float:
    """Seconds in which at least one of them was in progress."""
    busy, until = 0.0, float("-inf")
    for timing in sorted(timings, key=lambda timing: timing.began):
        ended = timing.began + timing.seconds
        busy += max(0.0, ended - max(timing.began, until))
        until = max(until, ended)
    return busy
