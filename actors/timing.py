"""How long a piece of an image generator's work took, reported to a callback.
Knows clocks; nothing of what is done."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Literal

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
