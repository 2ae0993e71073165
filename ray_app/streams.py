"""Standard output and error that a command outlives: what reads them may go, a disk may fill, or there is none at all.
Knows streams; nothing of what is printed."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Lasting:
    """A stream whose troubles end what it shows, not the program: from the first error on it goes nowhere."""

    def __init__(self, stream: Any, quits: bool):
        self._stream, self._quits = stream, quits

    def write(self, text: str) -> int:
        with self._ignored():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._ignored():
            self._stream.flush()

    @contextlib.contextmanager
    def _ignored(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # for what is still in its buffer, too
            os.close(nowhere)
            if self._quits and isinstance(error, BrokenPipeError):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting(quits: bool) -> Iterator[None]:
    """Standard output and error as `Lasting`; letters that their encoding lacks are replaced.

    Args:
        quits: raise BrokenPipeError when nobody reads standard output any more, as a command wants that only prints.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    with contextlib.ExitStack() as closing:
        streams: list[Any] = [
            closing.enter_context(open(os.devnull, "w")) if stream is None else stream for stream in before
        ]
        sys.stdout, sys.stderr = Lasting(streams[0], quits), Lasting(streams[1], quits=False)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = before
