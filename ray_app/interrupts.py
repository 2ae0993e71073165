"""Ctrl-C and SIGTERM: at once where nothing is in hand, at the next safe point where something is."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_uninterrupted = 0
_waiting = False
"""Blocks of `uninterrupted` that are open, and whether a signal waits for their end."""


class Interrupts:
    """Inside `with`, both signals raise KeyboardInterrupt; inside `deferred()` they are only remembered."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        _set_handlers(dict.fromkeys(SIGNALS, self._receive))
        return self

    def __exit__(self, *raised: object) -> None:
        _set_handlers(self._before)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, `requested` tells that a signal came; the block looks at it when it safely can."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        global _waiting
        self.requested = True
        if self._deferred:
            return
        if not _uninterrupted:
            raise KeyboardInterrupt
        _waiting = True


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that a signal does not cut short, as it would leave things half done; it is obeyed at the end."""
    global _uninterrupted, _waiting
    _uninterrupted += 1
    try:
        yield
    finally:
        _uninterrupted -= 1
        if not _uninterrupted and _waiting:
            _waiting = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """After the block, a library's start say, both signals are handled as before it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _set_handlers(before)


def _set_handlers(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items() if _is_main_thread() else ():
        signal.signal(number, handler)


def _is_main_thread() -> bool:
    """Only it can have handlers."""
    return threading.current_thread() is threading.main_thread()
