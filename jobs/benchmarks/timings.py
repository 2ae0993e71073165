"""What the benchmark notes of the real workers: when each thing began and ended, a line each in a file an actor.
Knows which calls of a worker are worth timing, and how seconds become shares; changes nothing that they do."""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.recipe import Capture, Recipe
from ray_app.worker import Worker

WORK = ("text encoding", "denoising", "decoding", "encoding")
"""What an actor does, in the order of a batch; the rest of its time it waits."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """One call, on the clock that files' times are on."""

    work: str
    began: float
    ended: float
    cpu_seconds: float
    """Of the thread that called: where it draws alone, what it lacks to the whole time was another process's."""


def noting(folder: Path) -> type[Worker]:
    """A worker that notes its calls in `folder`, which every node must reach."""

    class NotingWorker(Worker):
        """Draws as any worker. Made here so that it travels to the actors with its folder."""

        def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
            generator = super().load(recipe, captures, threads)
            watch(generator, str(folder))
            return generator

    return NotingWorker


def watch(generator: Any, folder: str) -> None:
    """Note what this process's image generator does from now on."""
    from actors import generator as image_generator
    from actors import pipelines

    file = os.open(f"{folder}/{os.getpid()}-{time.time_ns()}.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    generator.family.encode = _noted("text encoding", generator.family.encode, file)
    for work, module, name in (
        ("denoising", pipelines, "denoise"),
        ("decoding", pipelines, "decode_to_uint8"),
        ("encoding", image_generator, "encode"),
    ):
        setattr(module, name, _noted(work, getattr(module, name), file))


def _noted(work: str, call: Callable[..., Any], file: int) -> Callable[..., Any]:
    call = getattr(call, "not_noted", call)  # Ray may give an actor a process that has drawn before

    @functools.wraps(call)
    def noted(*arguments: Any, **named: Any) -> Any:
        began, cpu_began = time.time(), time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            line = json.dumps([work, began, time.time(), time.thread_time() - cpu_began])
            os.write(file, f"{line}\n".encode())  # in one piece: threads may end at once, a killed actor leaves no half

    noted.not_noted = call  # type: ignore[attr-defined]
    return noted


def read(folder: Path) -> list[list[Interval]]:
    """What each actor noted; nothing for one that had loaded and drew nothing."""
    files = (path.read_text().splitlines() for path in sorted(folder.glob("*.jsonl")))
    return [[Interval(*json.loads(line)) for line in lines] for lines in files]


def first(actors: Sequence[Sequence[Interval]]) -> float:
    """When the first of them began."""
    return min(interval.began for actor in actors for interval in actor)


def shares(actors: Sequence[Sequence[Interval]], began: float, ended: float) -> dict[str, float]:
    """Of the actors' time between two moments, the share of each kind of work, and of waiting.

    Work that is done beside other work counts for both, so that shares can add up to more than one; waiting is the time
    in which nothing is done.
    """
    whole = (ended - began) * len(actors)
    found = {work: sum(i.ended - i.began for actor in actors for i in actor if i.work == work) / whole for work in WORK}
    return {**found, "waiting": 1 - sum(map(_covered, actors)) / whole}


def had_core(actors: Sequence[Sequence[Interval]]) -> float:
    """Share of their working time in which 1-thread actors had a core; for the rest other processes had it."""
    intervals = [interval for actor in actors for interval in actor]
    return sum(i.cpu_seconds for i in intervals) / sum(i.ended - i.began for i in intervals)


def _covered(intervals: Sequence[Interval]) -> float:
    """Seconds in which at least one of them was going on."""
    covered, until = 0.0, float("-inf")
    for interval in sorted(intervals, key=lambda interval: interval.began):
        covered += max(0.0, interval.ended - max(interval.began, until))
        until = max(until, interval.ended)
    return covered
