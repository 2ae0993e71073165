"""Processes that draw the variants without Ray: loaded once, started together, timed from that until the last ends.
Knows processes and their threads; what they generate is in `variants`."""

import dataclasses
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.recipe import Recipe
from ray_app.errors import Refused

Slot = tuple[int, str, int]


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """How a variant is spread over the machine: so many processes at once, each with so many threads."""

    processes: int
    threads: int

    def __str__(self) -> str:
        many = "es" if self.processes > 1 else ""
        return f"{self.processes} process{many}, {self.threads} thread{'s' if self.threads > 1 else ''} each"


def arrangements(cores: int, device: str) -> list[Arrangement]:
    """What to choose from: on CPUs one process with all threads or a 1-thread process a core, on a GPU one process."""
    if device == "cuda" or cores == 1:
        return [Arrangement(1, cores)]
    return [Arrangement(cores, 1), Arrangement(1, cores)]


class Pool:
    """As many processes as any arrangement wants, each with the model loaded. Use it in a `with`.

    Raises:
        Refused: a process can't load the model or draw, in its own words.
    """

    def __init__(self, recipe: Recipe, steps: Sequence[int], processes: int):
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half
        self._ends: list[Any] = []
        self._processes: list[Any] = []
        for _ in range(processes):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(theirs, recipe, list(steps)), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Pool":
        for end in self._ends:
            _answer(end)  # loaded
        return self

    def __exit__(self, *_: object) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()

    def draw(self, variant: str, shares: Sequence[Sequence[Slot]], threads: int, folder: Path) -> float:
        """Seconds from a common start, after all have warmed up, until the last process has drawn its share."""
        ends = self._ends[: len(shares)]
        for end, share in zip(ends, shares, strict=True):
            end.send((variant, list(share), threads, str(folder)))
        for end in ends:
            _answer(end)  # warm
        started = time.perf_counter()
        for end in ends:
            end.send("go")
        for end in ends:
            _answer(end)  # drawn
        seconds = time.perf_counter() - started
        for end in ends:
            _answer(end)  # put back
        return seconds


def deal(slots: Sequence[Slot], processes: int, batch_size: int = 1) -> list[list[Slot]]:
    """Slots dealt to processes batch by batch, round-robin."""
    shares: list[list[Slot]] = [[] for _ in range(processes)]
    for number, start in enumerate(range(0, len(slots), batch_size)):
        shares[number % processes] += slots[start : start + batch_size]
    return shares


def _answer(end: Any) -> None:
    try:
        answer = end.recv()
    except EOFError:
        raise Refused("a process that draws for comparison died (out of memory?); see --variants") from None
    if answer != "ok":
        raise Refused(f"drawing for comparison failed: {answer}")


def _serve(end: Any, recipe: Recipe, steps: list[int]) -> None:
    """A process of the pool, until the other end is closed. Answers "ok", or why not."""
    try:
        from jobs.benchmarks import variants

        family = variants.load(recipe)
        end.send("ok")
        while True:
            name, share, threads, folder = end.recv()
            _draw_once(end, variants.VARIANTS[name](family, steps, Path(folder)), share, threads)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception as error:
        end.send(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


def _draw_once(end: Any, variant: Any, share: list[Slot], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    with variant.ready(share):
        variant.warm_up(share)
        end.send("ok")
        end.recv()
        variant.draw(share)
        end.send("ok")
        variant.show()
    end.send("ok")
