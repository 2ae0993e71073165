"""The project's folder in the user's cache, and files in it that are replaced whole.
Knows where it is; nothing of what is kept there."""

import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """`proxyqueue` in XDG_CACHE_HOME, or in ~/.cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "proxyqueue"


def replace(path: Path, text: str) -> None:
    """Write a file: at every moment it has all of the old text or of the new one. Its folder exists.

    Raises:
        OSError: it can't be written.
    """
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)
