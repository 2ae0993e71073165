"""Messages alongside a command's results: one line each on stderr, through one logger.
Knows how a line is shown, and how a worker's line reaches its driver."""

import logging
import sys
from collections.abc import Callable

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


def send_to_driver(send: Send) -> None:
    """From now on lines of this process, a worker whose stderr nobody reads, are sent instead of shown."""
    LOG.handlers[:] = [_Sender(send)]


LOG.propagate = False
LOG.setLevel(logging.INFO)
LOG.handlers[:] = [_OnStderr()]
