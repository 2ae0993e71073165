"""Atomic writes on this machine: a file or folder is written under a temporary name, then renamed.
Knows names and errors; nothing of what is in them."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from ray_app.errors import InputRefused
from ray_app.interrupts import uninterrupted


@contextlib.contextmanager
def whole_file(path: Path, flag: str | None = None) -> Iterator[Path]:
    """A temporary name to write to, in the file's folder; renamed to the file at the end, removed after an error.

    Args:
        flag: what a user named the file by; None leaves errors as the system raises them.

    Raises:
        Refused: it can't be written.
    """
    if flag:
        check_place(path, flag)
    staged = _beside(path)
    with _telling(flag, path):
        try:
            yield staged
            os.replace(staged, path)
        finally:
            with uninterrupted():
                staged.unlink(missing_ok=True)


def check_place(path: Path, flag: str) -> None:
    """Raise Refused if a file can't be created at this path."""
    if path.is_dir():
        raise InputRefused(f"{flag} {path}: is a folder")
    if not path.parent.is_dir():
        raise InputRefused(f"{flag} {path}: its folder does not exist")


@contextlib.contextmanager
def whole_folder(path: Path, flag: str) -> Iterator[Path]:
    """A temporary folder to write to, alongside the requested one; renamed to it at the end, removed after an error.

    Raises:
        Refused: the path exists already, or it can't be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputRefused(f"{flag} {path}: exists already; name a new or empty folder")
    staged = _beside(path)
    with _telling(flag, path):
        try:
            staged.mkdir(parents=True)
            yield staged
            staged.rename(path)
        finally:
            with uninterrupted():
                shutil.rmtree(staged, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def _telling(flag: str | None, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if flag is None:
            raise
        raise InputRefused(f"{flag} {path}: can't be written: {error.strerror or error}") from error
