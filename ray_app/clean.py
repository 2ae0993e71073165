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
from ray_app.errors import OK, OutputRefused
from ray_app.partition import Partition, retry_if_compacted
from ray_app.storage import Output, open_output
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
class FolderContents:
    """What of a folder is to go, by kind: paths under OUTPUT and bytes; and what stays in it."""

    folder: str
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    unknown_files: list[str] = dataclasses.field(default_factory=list)

    def describe(self) -> str:
        """Folder, files and bytes on one line."""
        counts = ", ".join(f"{len(files):,} {kind}" for kind, files in self.files.items())
        return f"{self.folder:<28} {counts}, {self.bytes:,} bytes"


def clean(options: Clean) -> int:
    """Remove what these options name; the exit code.

    Raises:
        Refused: options that don't say what, no such output, a run that is going on, nobody who agrees.
    """
    output = open_output(options.output_base_path)
    if not output.exists():
        raise OutputRefused(f"--output_base_path {output.url}: no such folder", flag="output_base_path")
    going_on = [] if options.force else runs.going_on(output)
    if going_on:
        record = output.display_path(layout.run_file(going_on[0]["run_id"]))
        raise OutputRefused(f"{record}: this run is going on; wait for its end, stop it, or --force")
    folders = [_scan_folder(output, folder, options) for folder in _folders(output, options)]
    rows = _count_rows(output, options)
    print(_describe(folders, rows, _others(output, options, folders)))
    if options.dry_run:
        return OK
    if rows or any(folder.files for folder in folders):
        _confirm(options, output)
    _remove(output, options, folders)
    return OK


def _model_types(options: Clean) -> list[str]:
    return [name for name in layout.MODEL_TYPES if options.all or name == options.model_type]


def _folders(output: Output, options: Clean) -> list[str]:
    """The folders of OUTPUT that hold what is to go, those of images first."""
    found = []
    for model_type in _model_types(options):
        for folder in output.step_folders(model_type):
            is_snapshot = options.snapshot in (None, folder.snapshot)
            is_step = not options.steps or folder.step in options.steps
            if is_snapshot and is_step:
                found.append(folder.name)
    if options.all and not options.caches:
        found += [layout.INDEX, layout.RUNS, layout.STAGING, layout.GALLERY, layout.CONVERGENCE]
    return found


def _others(output: Output, options: Clean, folders: list[FolderContents]) -> list[str]:
    """What stands in OUTPUT beside these folders, where everything of proxyqueue's is to go."""
    if not options.all or options.caches:
        return []
    known = {contents.folder for contents in folders}
    return sorted(entry.name for entry in output.entries("") if entry.name not in known)


def _scan_folder(output: Output, folder: str, options: Clean) -> FolderContents:
    contents = FolderContents(folder)
    found: dict[str | None, list[str]] = {}
    for entry in output.files(folder):
        name, kind = entry.name, _kind(folder, entry.name)
        if options.caches and kind != CACHE:
            continue
        found.setdefault(kind, []).append(f"{folder}/{name}")
        contents.bytes += entry.bytes if kind else 0
    contents.files = {kind: found[kind] for kind in (CACHE, IMAGE, PART, RECORD, STAGED, PAGE) if kind in found}
    contents.unknown_files = found.get(None, [])
    return contents


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


def _count_rows(output: Output, options: Clean) -> dict[str, int]:
    """How many rows of each model are to go, where there are any.

    Raises:
        Refused: a part that can't be read, unless everything goes anyway.
    """
    if options.caches:
        return {}
    counts = {model_type: _count_rows_of(output, model_type, options) for model_type in _model_types(options)}
    return {model_type: count for model_type, count in counts.items() if count}


@retry_if_compacted
def _count_rows_of(output: Output, model_type: str, options: Clean) -> int:
    """How many rows of a model are to go, superseded ones included.

    Raises:
        Refused: a part that can't be read, unless everything goes anyway.
    """
    found = Partition.open(output, model_type)
    rows = found.read(COLUMNS)
    for name, reason in found.damaged.items():
        if not options.all:
            raise OutputRefused(
                f"{output.display_path(name)}: not a readable part of the index: {reason};"
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


def _describe(folders: list[FolderContents], rows: dict[str, int], others: list[str]) -> str:
    lines = [f"{layout.index_folder(name):<28} {count:,} rows" for name, count in rows.items()]
    files = bytes_ = 0
    stays = []
    for contents in folders:
        if contents.files:
            lines.append(contents.describe())
        files += sum(map(len, contents.files.values()))
        bytes_ += contents.bytes
        stays += contents.unknown_files
    lines.append(f"to remove: {sum(rows.values()):,} rows, {files:,} files, {bytes_:,} bytes")
    lines += [f"stays: {name}" for name in (*stays, *others)]
    return "\n".join(lines)


def _confirm(options: Clean, output: Output) -> None:
    if options.yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise OutputRefused(
            "--yes: needed where there is no terminal to ask on; see first what would go with --dry_run"
        )
    try:
        answer = input(f"Remove this from {output.url}? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise OutputRefused("not confirmed; nothing was removed")


def _remove(output: Output, options: Clean, folders: list[FolderContents]) -> None:
    if not options.caches:
        with output.writing(runs.new_id()) as writer:
            for model_type in _model_types(options):
                rewrite(writer, model_type, lambda rows: _matching(options, rows))
    for contents in folders:
        for names in contents.files.values():
            output.remove_all(names)
        output.remove_empty(contents.folder)
    print("removed")
