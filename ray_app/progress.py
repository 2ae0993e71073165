"""Progress of a run, or of checking one: a bar on a terminal, otherwise a line every ten seconds.
Counts on the driver; knows nothing of Ray."""

import collections
import dataclasses
import sys
import time

LINE_SECONDS = 10.0
BAR_SECONDS = 0.5
RATE_SECONDS = 60.0


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
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar = _Bar(total, done) if sys.stderr.isatty() else None

    def add(self, ok: int, failed: int) -> None:
        """Count images that a worker has finished."""
        self.done += ok
        self.failed += failed
        self._generated += ok + failed
        self._arrivals.append((time.monotonic(), self._generated))

    def is_due(self) -> bool:
        """Whether the next line is to be shown; call it often."""
        return time.monotonic() >= self._next_line

    def show(self, pool: PoolState) -> None:
        """Show a line now."""
        line = self.describe(pool)
        if self._bar:
            self._next_line = time.monotonic() + BAR_SECONDS
            self._bar.show(self.done, line)
        else:
            self._next_line = time.monotonic() + LINE_SECONDS
            print(line, file=sys.stderr, flush=True)

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
        if self._bar:
            self._bar.close()


class Checked:
    """Shows how many of an output's images are checked (or read, compared, …), images/s and time left."""

    def __init__(self, total: int, what: str = "checked"):
        self.total, self.what, self.done = total, what, 0
        self._started = time.monotonic()
        self._next_line = self._started + LINE_SECONDS
        self._bar = _Bar(total, 0) if sys.stderr.isatty() else None

    def add(self, images: int) -> None:
        """Count images, and show a line if it is due."""
        self.done += images
        now = time.monotonic()
        if self._bar:
            self._bar.show(self.done, self.describe())
        elif now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            print(self.describe(), file=sys.stderr, flush=True)

    def describe(self) -> str:
        """One line."""
        rate = self.done / max(time.monotonic() - self._started, 1e-9)
        eta = duration((self.total - self.done) / rate) if rate else "?"
        return f"{self.done:,} of {self.total:,} images {self.what}, {rate:,.0f} images/s, {eta} left"

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.close()


class Bytes:
    """Shows how many bytes are read or downloaded, MB/s and time left."""

    def __init__(self, what: str):
        self.what = what
        self._started = time.monotonic()
        self._next_line = self._started + LINE_SECONDS

    def show(self, done: int, total: int) -> None:
        """Show a line every ten seconds."""
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            print(self.describe(done, total), file=sys.stderr, flush=True)

    def describe(self, done: int, total: int) -> str:
        """One line."""
        rate = done / max(time.monotonic() - self._started, 1e-9)
        eta = duration((total - done) / rate) if rate else "?"
        unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        return f"{done / unit:,.1f} of {total / unit:,.1f} {name} {self.what}, {rate / 1e6:,.1f} MB/s, {eta} left"


class _Bar:
    def __init__(self, total: int, done: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("starting", total=total, completed=done)
        self._progress.start()

    def show(self, done: int, text: str) -> None:
        self._progress.update(self._task, completed=done, description=text)

    def close(self) -> None:
        self._progress.stop()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
