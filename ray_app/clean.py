"""The verb `clean`: rows first, then feature caches and files, so that the index is true whenever it is killed.
Knows which files are proxyqueue's own by their names; nothing of what is in them."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ray_app import layout, runs
from ray_app.compact import COLUMNS, rewrite
from ray_app.errors import OK, Refused
from ray_app.partition import Partition, retry_if_compacted
from ray_app.storage import Storage, open_storage
from ray_app.upkeep_options import Clean

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

CACHE, IMAGE, PART, RECORD, STAGED, PAGE = (
    "feature caches",
    "images",
    "parts",
    "records",
    "staged files",
    "gallery files",
)
"""Kinds of files, in the order in which a folder's are removed: no cache outlives an image that it was made of."""


@dataclasses.dataclass
class Stock:
    """What of a folder is to go, by kind: paths under OUTPUT and bytes; and what stays in it."""

    folder: str
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    strange: list[str] = dataclasses.field(default_factory=list)

    def describe(self) -> str:
        """Folder, files and bytes on one line."""
        counts = ", ".join(f"{len(files):,} {kind}" for kind, files in self.files.items())
        return f"{self.folder:<28} {counts}, {self.bytes:,} bytes"


def clean(options: Clean) -> int:
    """Remove what these options name; the exit code.

    Raises:
        Refused: options that don't say what, no such output, a run that is going on, nobody who agrees.
    """
    storage = open_storage(options.output_base_path, runs.new_id())
    if not storage.exists():
        raise Refused(f"--output_base_path {storage.url}: no such folder")
    going_on = [] if options.force else runs.going_on(storage)
    if going_on:
        record = storage.at(layout.run_file(going_on[0]["run_id"]))
        raise Refused(f"{record}: this run is going on; wait for its end, stop it, or --force")
    stocks = [_take_stock(storage, folder, options) for folder in _folders(storage, options)]
    rows = {} if options.caches else {name: _count_rows(storage, name, options) for name in _model_types(options)}
    rows = {name: count for name, count in rows.items() if count}
    others = sorted(entry.name for entry in storage.entries("")) if options.all and not options.caches else []
    others = [name for name in others if name not in {stock.folder for stock in stocks}]
    print(_describe(stocks, rows, others))
    if options.dry_run:
        return OK
    if rows or any(stock.files for stock in stocks):
        _confirm(options, storage)
    _remove(storage, options, stocks)
    return OK


def _model_types(options: Clean) -> list[str]:
    return [name for name in layout.MODEL_TYPES if options.all or name == options.model_type]


def _folders(storage: Storage, options: Clean) -> list[str]:
    """The folders of OUTPUT that hold what is to go, those of images first."""
    found = [
        folder.name
        for model_type in _model_types(options)
        for folder in storage.step_folders(model_type)
        if options.snapshot in (None, folder.snapshot) and (not options.steps or folder.step in options.steps)
    ]
    return found + (
        [layout.INDEX, layout.RUNS, layout.STAGING, layout.GALLERY, layout.CONVERGENCE]
        if options.all and not options.caches
        else []
    )


def _take_stock(storage: Storage, folder: str, options: Clean) -> Stock:
    stock = Stock(folder)
    found: dict[str | None, list[str]] = {}
    for entry in storage.files(folder):
        name, kind = entry.name, _kind(folder, entry.name)
        if options.caches and kind != CACHE:
            continue
        found.setdefault(kind, []).append(f"{folder}/{name}")
        stock.bytes += entry.bytes if kind else 0
    stock.files = {kind: found[kind] for kind in (CACHE, IMAGE, PART, RECORD, STAGED, PAGE) if kind in found}
    stock.strange = found.get(None, [])
    return stock


def _kind(folder: str, name: str) -> str | None:
    """What proxyqueue, or a retrieval script, wrote this file as; None for anybody else's."""
    if layout.parse_step_folder(folder):
        if layout.is_image_file(name):
            return IMAGE
        return CACHE if layout.is_feature_cache(name) else None
    if folder == layout.STAGING:
        return STAGED
    if folder == layout.GALLERY:
        return PAGE if layout.is_gallery_file(name) else None
    path = f"{folder}/{name}"
    if path in (layout.CONVERGENCE_TABLE, layout.CONVERGENCE_PLOT):
        return PAGE
    if layout.is_index_part(path):
        return PART
    return RECORD if layout.is_run_file(path) else None


@retry_if_compacted
def _count_rows(storage: Storage, model_type: str, options: Clean) -> int:
    """How many rows are to go, superseded ones included.

    Raises:
        Refused: a part that can't be read, unless everything goes anyway.
    """
    found = Partition.open(storage, model_type)
    rows = found.read(COLUMNS)
    for name, reason in found.damaged.items():
        if not options.all:
            raise Refused(
                f"{storage.at(name)}: not a readable part of the index: {reason};"
                " `proxyqueue verify --repair` sets it aside"
            )
    return int(_matching(options, rows).sum())


def _matching(options: Clean, rows: pa.Table) -> np.ndarray:
    """Which rows are to go: bool, one a row."""
    matching = np.ones(rows.num_rows, bool)
    if options.snapshot:
        matching &= np.asarray(pc.equal(rows["snapshot"], options.snapshot))
    if options.steps:
        matching &= np.isin(np.asarray(rows["step"]), options.steps)
    return matching


def _describe(stocks: list[Stock], rows: dict[str, int], others: list[str]) -> str:
    lines = [f"{layout.index_folder(name):<28} {count:,} rows" for name, count in rows.items()]
    lines += [stock.describe() for stock in stocks if stock.files]
    files = sum(len(names) for stock in stocks for names in stock.files.values())
    lines.append(f"to remove: {sum(rows.values()):,} rows, {files:,} files, {sum(s.bytes for s in stocks):,} bytes")
    strange = [*(name for stock in stocks for name in stock.strange), *others]
    lines += [f"stays: {name}" for name in strange]
    return "\n".join(lines)


def _confirm(options: Clean, storage: Storage) -> None:
    if options.yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise Refused("--yes: needed where there is no terminal to ask on; see first what would go with --dry_run")
    try:
        answer = input(f"Remove this from {storage.url}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Refused("not confirmed; nothing was removed")


def _remove(storage: Storage, options: Clean, stocks: list[Stock]) -> None:
    try:
        if not options.caches:
            for model_type in _model_types(options):
                rewrite(storage, model_type, lambda rows: _matching(options, rows))
        for stock in stocks:
            for names in stock.files.values():
                storage.remove_all(names)
            storage.remove_empty(stock.folder)
    finally:
        storage.remove_staging()
    print("removed")
