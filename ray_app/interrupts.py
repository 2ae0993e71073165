"""Ctrl-C and SIGTERM: at once where nothing is in hand, at the next safe point where something is."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt; inside `deferred()` it only remembers them."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def install(self) -> None:
        """Take both signals; again after libraries that took them."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, `requested` tells that a signal came; the block looks at it when it safely can."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt
