"""One piece's command: run with a limit of time, and ended with all the processes that it has started.
Knows processes; nothing of what is measured."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray_app.interrupts import uninterrupted

ROOT = Path(__file__).resolve().parents[3]
MARK = "PROXYQUEUE_PIECE"
"""A variable in the environment of all that a piece starts, Ray's processes too: they are found by it."""
GRACE_SECONDS = 20.0
"""How long an interrupted command may take to stop Ray."""
KEPT = 3000
"""Characters of the end of what a command printed that are kept."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Args:
        code: its exit code; None if it was ended at the limit.
        seconds: how long it took.
        said: the end of what it printed.
    """

    code: int | None
    seconds: float
    said: str


def run(command: Sequence[str], seconds: float, log: Path) -> Ended:
    """Run a command in the project's root, for this many seconds at most. All that it started has ended then.

    Args:
        log: a file for what it prints.
    """
    mark = f"{os.getpid()}-{time.time_ns()}"
    began = time.monotonic()
    with log.open("w") as printed:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = _wait(process, seconds)
        finally:
            with uninterrupted():
                _end(process, mark)
    return Ended(code, time.monotonic() - began, log.read_text(errors="replace")[-KEPT:])


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """As Ctrl-C first, which the commands answer by stopping Ray; then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        if _wait(process, GRACE_SECONDS) is None:
            process.kill()
            process.wait()
    for other in _marked(mark):
        with contextlib.suppress(OSError):
            os.kill(other, signal.SIGKILL)


def _marked(mark: str) -> Iterator[int]:
    """Processes with this mark in their environment; none where the system does not list them in /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)
