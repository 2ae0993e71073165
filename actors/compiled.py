"""Code that torch.compile makes, kept in a folder: made by one process of a node while the others wait for it.
Knows the folder and its lock; what is compiled is `pipelines`' affair."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from actors import user_cache
from actors.errors import ModelError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable in which torch looks for the folder."""


def folder() -> Path:
    """Where compiled code is kept: the folder of `VARIABLE`, or "compiled" in the project's cache."""
    return Path(os.environ.get(VARIABLE) or user_cache.folder() / "compiled")


@contextlib.contextmanager
def shared(*keys: str) -> Iterator[None]:
    """Inside, torch keeps what it compiles in `folder()`, and only one process of this machine compiles for these keys.

    The others wait. Once it has ended without an error, they read what it compiled, at the same time. If it ends in
    any other way, killed for example, the next one compiles.

    Args:
        keys: what the code depends on, besides the machine: the recipe, the device, the version of torch.

    Raises:
        ModelError: the folder can't be written.
    """
    place = folder()
    name = hashlib.sha256("\0".join(keys).encode()).hexdigest()[:16]
    done, lock = place / f"{name}.done", place / f"{name}.lock"
    with contextlib.ExitStack() as held:
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(lock.open("a"))
        except OSError as error:
            raise ModelError(
                f"{place}: compiled code can't be kept there: {error.strerror}; set {VARIABLE} to another folder"
            ) from None
        os.environ[VARIABLE] = str(place)
        if not done.exists():
            fcntl.flock(file, fcntl.LOCK_EX)  # the system frees it when the process ends, in whatever way
        if done.exists():
            fcntl.flock(file, fcntl.LOCK_UN)
        yield
        with contextlib.suppress(OSError):
            done.touch()
