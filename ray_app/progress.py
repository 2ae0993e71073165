"""Progress of what can take more than two seconds: a bar on a terminal, otherwise a line every ten seconds.
Counts on the driver; knows nothing of Ray."""

import collections
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ray_app.messages import is_quiet

LINE_SECONDS = 10.0
BAR_SECONDS = 0.5
RATE_SECONDS = 60.0
SHORT_SECONDS = 2.0
"""What takes less than this needs no bar."""


@dataclasses.dataclass(frozen=True)
class PoolState:
    """A run's actors at a moment: how many are up, of how many that were requested.

    `waiting_for` says what a run without an actor waits for, and for how long; None where nothing keeps it.
    """

    up: int
    requested: int
    waiting_for: str | None = None


class Progress:
    """Shows images done of all, images/s of the last minute, time left, failures and actors up, on stderr.

    Args:
        total: requested images, those that existed at the start included.
        done: images that existed at the start.
        unit: what is counted, where it is not images.
    """

    def __init__(self, total: int, done: int, unit: str = "images"):
        self.total, self.done, self.failed, self.unit = total, done, 0, unit
        self._generated = 0
        self._arrivals: collections.deque[tuple[float, int]] = collections.deque()
        self._display = _Display(total)

    def add(self, ok: int, failed: int) -> None:
        """Count images that a worker has finished."""
        self.done += ok
        self.failed += failed
        self._generated += ok + failed
        self._arrivals.append((time.monotonic(), self._generated))

    def is_due(self) -> bool:
        """Whether the next line is to be shown; call it often."""
        return self._display.is_due()

    def show(self, pool: PoolState) -> None:
        """Show a line now."""
        self._display.show(self.done, self.describe(pool))

    def images_per_second(self) -> float:
        """Over the last minute, or since the first image arrived."""
        if not self._arrivals:
            return 0.0
        now = time.monotonic()
        while len(self._arrivals) > 2 and self._arrivals[0][0] < now - RATE_SECONDS:
            self._arrivals.popleft()
        seconds = now - self._arrivals[0][0]
        return (self._generated - self._arrivals[0][1]) / seconds if seconds > 0 else 0.0

    def describe(self, pool: PoolState) -> str:
        """One line."""
        rate = self.images_per_second()
        images_left = self.total - self.done - self.failed
        if pool.waiting_for and images_left:
            images = f"{self.done:,} of {self.total:,} {self.unit}, " if self._generated else ""
            return f"{images}{pool.waiting_for}"
        speed = eta = "?"
        if rate > 0:  # it is 0 until a second batch has arrived
            speed, eta = f"{rate:.1f}", duration(images_left / rate)
        return (
            f"{self.done:,} of {self.total:,} {self.unit}, {speed} {self.unit}/s, {eta} left, {self.failed:,} failed,"
            f" {pool.up} actors up"
        )

    def close(self) -> None:
        """Remove the bar."""
        self._display.close()


class Checked:
    """Shows how many of an output's images are checked (or read, compared, …), images/s and time left."""

    def __init__(self, total: int, what: str = "checked"):
        self.total, self.what, self.done = total, what, 0
        self._started = time.monotonic()
        self._display = _Display(total, after=SHORT_SECONDS)

    def add(self, images: int) -> None:
        """Count images, and show a line if it is due."""
        self.done += images
        if self._display.is_due():
            self._display.show(self.done, self.describe())

    def describe(self) -> str:
        """One line."""
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        eta = duration((self.total - self.done) / rate) if rate else "?"
        return f"{self.done:,} of {self.total:,} images {self.what}, {rate:,.0f} images/s, {eta} left"

    def close(self) -> None:
        """Remove the bar."""
        self._display.close()


class Bytes:
    """Shows how many bytes are read or downloaded, MB/s and time left."""

    def __init__(self, what: str):
        self.what = what
        self._started = time.monotonic()
        self._display = _Display(None, after=SHORT_SECONDS)

    def show(self, done: int, total: int) -> None:
        """Show where it is, if that is due."""
        if self._display.is_due():
            self._display.show(done, self.describe(done, total), total)

    def describe(self, done: int, total: int) -> str:
        """One line."""
        rate = done / max(time.monotonic() - self._started, 1e-9)
        eta = duration((total - done) / rate) if rate else "?"
        unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        return f"{done / unit:,.1f} of {total / unit:,.1f} {name} {self.what}, {rate / 1e6:,.1f} MB/s, {eta} left"

    def close(self) -> None:
        """Remove the bar."""
        self._display.close()


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[], None]]:
    """Inside, shows for how long something that can't be counted has been going on; yields what ends this early."""
    started, ended = time.monotonic(), threading.Event()
    display = _Display(None, after=SHORT_SECONDS)

    def show_until_the_end() -> None:
        while not ended.wait(BAR_SECONDS):
            if display.is_due():
                display.show(0, f"{what}, {duration(time.monotonic() - started)}")

    thread = threading.Thread(target=show_until_the_end, daemon=True)

    def end() -> None:
        ended.set()
        thread.join()
        display.close()

    thread.start()
    try:
        yield end
    finally:
        end()


class _Display:
    """Where progress is shown: a bar on a terminal, elsewhere a line every ten seconds, nothing with --quiet.

    Args:
        total: what `done` counts up to; None where that is not known.
        after: seconds until the bar appears.
    """

    def __init__(self, total: int | None, after: float = 0.0):
        self._total = total
        self._has_bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._next = time.monotonic() + (after if self._has_bar else LINE_SECONDS)
        self._bar: _Bar | None = None

    def is_due(self) -> bool:
        return not is_quiet() and time.monotonic() >= self._next

    def show(self, done: int, line: str, total: int | None = None) -> None:
        if is_quiet():
            return
        self._next = time.monotonic() + (BAR_SECONDS if self._has_bar else LINE_SECONDS)
        if not self._has_bar:
            print(line, file=sys.stderr, flush=True)
            return
        self._bar = self._bar or _Bar()
        self._bar.show(done, self._total if total is None else total, line)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.close()
            self._bar = None


class _Bar:
    """Rich leaves out colours where NO_COLOR is set."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def show(self, done: int, total: int | None, text: str) -> None:
        percentage = f"{100 * done / total:3.0f}% " if total else ""
        self._progress.update(self._task, completed=done, total=total, description=f"{percentage}{text}")

    def close(self) -> None:
        self._progress.stop()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
