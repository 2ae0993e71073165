"""The index's parts as files: which of them can be read, and which are damaged and why.
Knows Parquet and checksums; nothing of what the rows mean."""

import json
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.errors import Refused, one_line
from ray_app.storage import Storage

VERSION_KEY = b"proxyqueue.schema_version"
RECIPES_KEY = b"proxyqueue.recipes"

Identity = tuple[str, int, int]
"""A part is immutable: its path, size and modification time stand for its content."""

_recipes: dict[Identity, dict[str, Any]] = {}
_damaged: dict[Identity, str] = {}
"""What this process found out: each footer is read once, each damaged part said once."""


class Vanished(FileNotFoundError):
    """A part was there when the folder was listed and is gone now: list it again."""


def readable(storage: Storage, names: list[str], schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """The readable ones of these parts, each with the recipes of its footer; the others are said on stderr, once.

    Raises:
        Refused: a part that can't be opened though it may be whole (no permission, a failing disk), or is of another
            version of the schema.
        Vanished: compaction replaced a part just now.
    """
    found = {}
    for part, identity in _identities(storage, names).items():
        if identity not in _recipes and identity not in _damaged:
            try:
                _recipes[identity] = _read_footer(storage, part, schema)
            except _UNREADABLE as error:
                _note(storage, part, identity, error)
        if identity not in _damaged:
            found[part] = _recipes[identity]
    return found


def damaged(storage: Storage, folder: str) -> list[str]:
    """The parts of a folder that this process found damaged."""
    known = {path for path, _, _ in _damaged}
    return [part for part in storage.list_names(folder, "*.parquet") if storage.at(part) in known]


def find_damaged_data(storage: Storage, names: list[str]) -> bool:
    """Read these parts whole, now that reading some of their columns has failed; whether any of them is damaged."""
    before = len(_damaged)
    for name, identity in _identities(storage, names).items():
        try:
            with opened(storage, name) as file:
                file.read()
        except _UNREADABLE as error:
            _note(storage, name, identity, error)
    return len(_damaged) > before


def opened(storage: Storage, name: str) -> pq.ParquetFile:
    """A part, to be used in a `with`; its checksums are looked at wherever it is read."""
    return pq.ParquetFile(storage.path(name), filesystem=storage.filesystem, page_checksum_verification=True)


_UNREADABLE = (pa.ArrowException, OSError, ValueError)


def _read_footer(storage: Storage, name: str, schema: pa.Schema) -> dict[str, Any]:
    with opened(storage, name) as file:
        found = file.schema_arrow
    metadata = found.metadata or {}
    version, ours = metadata.get(VERSION_KEY), (schema.metadata or {}).get(VERSION_KEY)
    if version is not None and version != ours:
        raise Refused(
            f"{storage.at(name)}: version {version.decode(errors='replace')} of the index's schema, and this proxyqueue"
            f" reads {(ours or b'').decode()}; take the proxyqueue that wrote it"
        )
    if not found.equals(schema):
        raise ValueError("its columns are not the index's")
    recipes = json.loads(metadata.get(RECIPES_KEY, b"{}"))
    if not isinstance(recipes, dict) or not all(isinstance(recipe, dict) for recipe in recipes.values()):
        raise ValueError("its recipes are not recipes")
    return recipes


def _identities(storage: Storage, names: list[str]) -> dict[str, Identity]:
    """Of one listing a folder, not of a request a part."""
    there = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        there |= {f"{folder}/{entry.name}": entry for entry in storage.entries(folder)}
    if gone := next((name for name in names if name not in there), None):
        raise Vanished(storage.at(gone))
    return {name: (storage.at(name), there[name].bytes, there[name].mtime_ns) for name in names}


def _note(storage: Storage, name: str, identity: Identity, error: Exception) -> None:
    """Remember a damaged part and say so. An error of the place is none of the part's."""
    path = storage.at(name)
    if isinstance(error, FileNotFoundError):
        raise Vanished(path) from None
    if why := storage.failed(error):
        raise Refused(f"{path}: can't be read: {why}") from error
    if identity not in _damaged:
        _damaged[identity] = reason = one_line(error, 200)
        print(
            f"proxyqueue: {path}: a damaged part of the index ({reason}); its rows don't count, and generate sets it"
            " aside and draws its images again",
            file=sys.stderr,
        )
