"""Standard output and error whose failure does not end a command: a closed pipe, a full disk, or no stream at all.
Knows streams; nothing of what is printed."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


class Lasting:
    """A stream whose errors do not end the program: from the first error on, what is written to it is dropped."""

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
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())  # also drops what is still in the stream's buffer
            os.close(devnull)
            if self._quits and isinstance(error, BrokenPipeError):
                raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting(quits: bool) -> Iterator[None]:
    """Make standard output and error `Lasting`; characters that their encoding lacks are replaced.

    Args:
        quits: raise BrokenPipeError when nobody reads standard output any more; for commands that only print.
    """
    original = sys.stdout, sys.stderr
    for stream in original:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    with contextlib.ExitStack() as closing:
        streams: list[Any] = [
            closing.enter_context(open(os.devnull, "w")) if stream is None else stream for stream in original
        ]
        sys.stdout, sys.stderr = Lasting(streams[0], quits), Lasting(streams[1], quits=False)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = original
