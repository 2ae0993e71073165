"""Progress of a run, or of checking one: a bar on a terminal, otherwise a line every ten seconds.
Counts on the driver; knows nothing of Ray."""

import collections
import sys
import time
from collections.abc import Callable

LINE_SECONDS = 10.0
RATE_SECONDS = 60.0


class Progress:
    """Shows images done of all, images/s of the last minute, time left, failures and actors up, on stderr.

    Args:
        total: images requested, including those that existed at the start.
        done: images that existed at the start.
        actors_up: gives the number of actors whenever a line is shown.
        waiting: says what the run is waiting for while no actor is up.
    """

    def __init__(self, total: int, done: int, actors_up: Callable[[], int], waiting: Callable[[], str] | None = None):
        self.total, self.done, self.failed = total, done, 0
        self._generated = 0
        self._actors_up, self._waiting = actors_up, waiting
        self._none_since = time.monotonic() if waiting else 0.0
        self._arrivals: collections.deque[tuple[float, int]] = collections.deque()
        self._next_line = time.monotonic() + LINE_SECONDS
        self._bar = _Bar(total, done) if sys.stderr.isatty() else None

    def add(self, ok: int, failed: int) -> None:
        """Count images that a worker has finished."""
        self.done += ok
        self.failed += failed
        self._generated += ok + failed
        self._arrivals.append((time.monotonic(), self._generated))

    def tick(self) -> None:
        """Show a line if it is due; call this often."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + (0.5 if self._bar else LINE_SECONDS)
        if self._bar:
            self._bar.show(self.done, self.describe())
        else:
            print(self.describe(), file=sys.stderr, flush=True)

    def images_per_second(self) -> float:
        """Over the last minute, or since the first image arrived."""
        if not self._arrivals:
            return 0.0
        now = time.monotonic()
        while len(self._arrivals) > 2 and self._arrivals[0][0] < now - RATE_SECONDS:
            self._arrivals.popleft()
        seconds = now - self._arrivals[0][0]
        return (self._generated - self._arrivals[0][1]) / seconds if seconds > 0 else 0.0

    def describe(self) -> str:
        """One line."""
        up = self._actors_up()
        if self._waiting and up:
            self._none_since = time.monotonic()
        images_left = self.total - self.done - self.failed
        if not up and images_left and self._waiting:
            images = f"{self.done:,} of {self.total:,} images, " if self._generated else ""
            return f"{images}{self._waiting()}, {time.monotonic() - self._none_since:.0f} s"
        rate = self.images_per_second()
        speed = eta = "?"
        if rate > 0:  # it is 0 until a second batch has arrived
            speed, eta = f"{rate:.1f}", duration(images_left / rate)
        return (
            f"{self.done:,} of {self.total:,} images, {speed} images/s, {eta} left, {self.failed:,} failed,"
            f" {up} actors up"
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.show(self.done, self.describe())
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
