"""SHA-256 of files, read once: checksums are kept by path, size, times and inode in the user's cache.
Knows files; nothing of models."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors import user_cache

KEPT_FROM = 2**20
"""Smallest size in bytes of a file whose checksum is kept: smaller ones are read as fast."""
PIECE = 2**22
THREADS = 8
Tell = Callable[[int, int], None]
"""Called with bytes read and bytes to read, from several threads."""


def of(files: Sequence[Path], tell: Tell = lambda done, total: None) -> list[str]:
    """The checksum of each file, as 64 hex digits.

    A file of the hub's cache whose name is its checksum is not read: the client verified it when it was downloaded.
    """
    known = {}
    with _kept() as kept:
        for file in files:
            real = file.resolve()
            if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
                known[file] = real.name
            elif (entry := kept.get(str(real))) and entry[0] == _state(real):
                known[file] = entry[1]
        unread = {file: _state(file) for file in files if file not in known}
        for file, checksum in zip(unread, _hash_files(list(unread), tell), strict=True):
            known[file] = checksum
            if file.stat().st_size >= KEPT_FROM:
                kept[str(file.resolve())] = [unread[file], checksum]
    return [known[file] for file in files]


def of_folder(folder: Path, names: Sequence[str], tell: Tell = lambda done, total: None) -> str:
    """One checksum of these files of a folder, including their names: "sha256:" and 16 hex digits."""
    digest = hashlib.sha256()
    for name, checksum in zip(names, of([folder / name for name in names], tell), strict=True):
        digest.update(f"{name}\0{checksum}\0".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def _state(file: Path) -> list[int]:
    """Values that change when a file is written to or replaced. Its ctime can't be set by a program."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _hash_files(files: list[Path], tell: Tell) -> list[str]:
    total, done = sum(file.stat().st_size for file in files), 0

    def digest(file: Path) -> str:
        nonlocal done
        sha256 = hashlib.sha256()
        with file.open("rb", buffering=0) as opened:
            while piece := opened.read(PIECE):
                sha256.update(piece)
                done += len(piece)  # only displayed: an update that is lost between threads does not matter
                tell(done, total)
        return sha256.hexdigest()

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(digest, files))


@contextlib.contextmanager
def _kept() -> Iterator[dict[str, list]]:
    """The kept checksums, to be changed in place; other processes wait, so that a node's actors read a model once.

    Without a cache that can be read or written, they are empty and not kept.
    """
    path = user_cache.folder() / "checksums.json"
    with contextlib.ExitStack() as locked:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(locked.enter_context(path.with_suffix(".lock").open("a")), fcntl.LOCK_EX)
        kept: dict[str, list] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):  # no file yet, or a damaged one
            kept = dict(json.loads(path.read_text()))
        original = dict(kept)
        yield kept
        if kept != original:
            with contextlib.suppress(OSError):
                user_cache.replace(path, json.dumps(kept))
