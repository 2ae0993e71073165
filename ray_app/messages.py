"""Messages alongside a command's results: warnings and errors on stderr through one logger, summaries on stdout.
Knows how a line is shown, what --quiet leaves out, and how a worker's line reaches its driver."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

LOG = logging.getLogger("proxyqueue")
TOPIC = "topic"
"""Of a record's `extra`: lines of several processes on one topic are shown once per run. Default: the line itself."""
Send = Callable[[str, str], object]
"""Takes a line and its topic."""


class _OnStderr(logging.Handler):
    """On stderr as it is now; what writing there raises is the command's to handle."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"proxyqueue: {record.getMessage()}", file=sys.stderr, flush=True)


class _Sender(logging.Handler):
    def __init__(self, send: Send):
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self._send(line, getattr(record, TOPIC, line))


class _Shown:
    """Whether warnings, progress and summaries are shown, and where summaries are."""

    quiet = False
    summaries_to_stderr = False


@contextlib.contextmanager
def reporting(quiet: bool, to_stderr: bool = False) -> Iterator[None]:
    """For the time of one command.

    Args:
        quiet: show errors and results only.
        to_stderr: summaries go to stderr: the one object of `--format json` has standard output for itself.
    """
    before = _Shown.quiet, _Shown.summaries_to_stderr, LOG.level
    _Shown.quiet, _Shown.summaries_to_stderr = quiet, to_stderr
    LOG.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        _Shown.quiet, _Shown.summaries_to_stderr, level = before
        LOG.setLevel(level)


def is_quiet() -> bool:
    """Whether only errors and results are to be shown."""
    return _Shown.quiet


def summarize(text: str) -> None:
    """Say what a command is about to do or has done; a result that the user requested is printed instead."""
    if not _Shown.quiet:
        print(text, file=sys.stderr if _Shown.summaries_to_stderr else sys.stdout, flush=True)


def send_to_driver(send: Send) -> None:
    """From now on lines of this process, a worker whose stderr nobody reads, are sent instead of shown."""
    LOG.handlers[:] = [_Sender(send)]


LOG.propagate = False
LOG.setLevel(logging.INFO)
LOG.handlers[:] = [_OnStderr()]
