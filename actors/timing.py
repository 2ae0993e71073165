"""How long a piece of an image generator's work took, on the host's clock and on a device's.
Knows clocks; nothing of what is done."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

Work = Literal["text encoding", "denoising", "decoding", "encoding"]
"""What a generator does with a batch, in this order; encoding is of images as files."""


@dataclasses.dataclass
class Timing:
    """One piece of work. All but its beginning is 0 until it has ended."""

    work: Work
    began: float
    """Seconds since the epoch: the clock that files' times are on."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """CPU time of the thread. Where work has no other threads, another process had the core for the rest."""


@contextlib.contextmanager
def timed(work: Work, report: Callable[[Timing], object]) -> Iterator[Timing]:
    """Time the block. At its end, also if it raises, `report` gets the timing."""
    timing = Timing(work, time.time())
    began, cpu_began = time.perf_counter(), time.thread_time()
    try:
        yield timing
    finally:
        timing.seconds = time.perf_counter() - began
        timing.cpu_seconds = time.thread_time() - cpu_began
        report(timing)


class Stopwatch:
    """When a device came to certain points of its work, without waiting for it there. Starts when it is made."""

    def __init__(self, device: Any):
        self._is_cuda = device.type == "cuda"
        self._start, self._marks = self._now(), {}

    def mark(self, key: int) -> None:
        """Name the point that the work has been given up to now."""
        self._marks[key] = self._now()

    def read(self) -> dict[int, float]:
        """Seconds from the start to each mark; waits until a GPU has come to the last one."""
        if not self._is_cuda:
            return {key: mark - self._start for key, mark in self._marks.items()}
        for mark in self._marks.values():
            mark.synchronize()
        return {key: self._start.elapsed_time(mark) / 1000 for key, mark in self._marks.items()}

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
