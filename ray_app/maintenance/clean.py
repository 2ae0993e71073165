"""The command `clean`: rows first, then feature caches and files, so that the index stays valid if it is killed.
Knows proxyqueue's own files by their names; nothing of their contents."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.families import FAMILIES
from ray_app.errors import OK, OutputRefused
from ray_app.index import runs
from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.maintenance.options import Clean
from ray_app.maintenance.rewrite import COLUMNS, rewrite
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import working

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
KINDS = (CACHE, IMAGE, PART, RECORD, STAGED, PAGE)
"""Kinds of files, in the order in which they are removed: no cache outlives an image that it was made from."""


@dataclasses.dataclass
class FolderContents:
    """The files of a folder that are to be removed, by kind, as paths under OUTPUT; and those that stay."""

    folder: str
    files: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    unknown_files: list[str] = dataclasses.field(default_factory=list)

    def count_files(self) -> int:
        """How many files are to be removed."""
        return sum(map(len, self.files.values()))

    def describe(self) -> str:
        """Folder, files and bytes on one line."""
        counts = ", ".join(f"{len(files):,} {kind}" for kind, files in self.files.items())
        return f"{self.folder:<28} {counts}, {self.bytes:,} bytes"


def clean(options: Clean) -> int:
    """Remove what these options name; the exit code.

    Raises:
        Refused: the output does not exist, a run is active, or the removal is not confirmed.
    """
    output = open_output(options.output_base_path)
    if not output.exists():
        raise OutputRefused(f"--output_base_path {output.url}: no such folder", flag="output_base_path")
    active = [] if options.force else runs.active_runs(output)
    if active:
        record = output.display_path(layout.run_file(active[0]["run_id"]))
        raise OutputRefused(f"{record}: run still active; wait for its end, stop it, or pass --force")
    folders = [_scan_folder(output, folder, options) for folder in _folders(output, options)]
    rows_by_model = _count_rows(output, options)
    show = summarize if options.yes and not options.dry_run else print  # what is requested, or is to be confirmed
    show(_describe(folders, rows_by_model, _unknown_entries(output, options, folders)))
    if options.dry_run:
        return OK
    if rows_by_model or any(folder.files for folder in folders):
        _confirm(options, output)
    with working("removing"):
        _remove(output, options, folders)
    summarize("removed")
    return OK


def _model_types(options: Clean) -> list[str]:
    return [name for name in FAMILIES if options.all or name == options.model_type]


def _folders(output: Output, options: Clean) -> list[str]:
    """The folders of OUTPUT that hold files to remove, those of images first."""
    folders = []
    for model_type in _model_types(options):
        for folder in output.step_folders(model_type):
            is_snapshot = options.snapshot in (None, folder.snapshot)
            is_step = not options.steps or folder.step in options.steps
            if is_snapshot and is_step:
                folders.append(folder.name)
    if options.all and not options.caches:
        folders += [layout.INDEX, layout.RUNS, layout.STAGING]
        folders += [layout.FEATURES, layout.EVALUATION, layout.GALLERY, layout.CONVERGENCE]
    return folders


def _unknown_entries(output: Output, options: Clean, folders: list[FolderContents]) -> list[str]:
    """What OUTPUT holds apart from these folders, if everything of proxyqueue's is to be removed."""
    if not options.all or options.caches:
        return []
    known = {contents.folder for contents in folders}
    return sorted(entry.name for entry in output.entries("") if entry.name not in known)


def _scan_folder(output: Output, folder: str, options: Clean) -> FolderContents:
    contents = FolderContents(folder)
    files_by_kind: dict[str, list[str]] = {}
    for entry in output.files(folder):
        path, kind = f"{folder}/{entry.name}", _kind(folder, entry.name)
        if options.caches and kind != CACHE:
            continue
        if kind is None:
            contents.unknown_files.append(path)
        else:
            files_by_kind.setdefault(kind, []).append(path)
            contents.bytes += entry.bytes
    contents.files = {kind: files_by_kind[kind] for kind in KINDS if kind in files_by_kind}
    return contents


def _kind(folder: str, name: str) -> str | None:
    """What kind of file proxyqueue, or a retrieval script, wrote under this name; None if neither did."""
    if layout.parse_step_folder(folder):
        if layout.is_image_file(name):
            return IMAGE
        return CACHE if layout.is_feature_cache(name) else None
    if folder == layout.STAGING:
        return STAGED
    if folder == layout.GALLERY:
        return PAGE if layout.is_gallery_file(name) else None
    path = f"{folder}/{name}"
    if path in (layout.CONVERGENCE_TABLE, layout.CONVERGENCE_PLOT) or layout.is_evaluation_file(path):
        return PAGE
    if layout.is_index_part(path) or layout.is_features_part(path):
        return PART
    return RECORD if layout.is_run_file(path) else None


def _count_rows(output: Output, options: Clean) -> dict[str, int]:
    """How many rows of each model are to be removed, if any.

    Raises:
        Refused: a part that can't be read, unless all parts are to be removed.
    """
    if options.caches:
        return {}
    counts = {model_type: _count_rows_of(output, model_type, options) for model_type in _model_types(options)}
    return {model_type: count for model_type, count in counts.items() if count}


@retry_if_compacted
def _count_rows_of(output: Output, model_type: str, options: Clean) -> int:
    """How many rows of a model are to be removed, superseded ones included.

    Raises:
        Refused: a part that can't be read, unless all parts are to be removed.
    """
    partition = Partition.open(output, model_type)
    rows = partition.read(COLUMNS)
    for name, reason in partition.damaged.items():
        if not options.all:
            raise OutputRefused(
                f"{output.display_path(name)}: not a readable part of the index: {reason};"
                " `proxyqueue verify --repair` quarantines it"
            )
    return int(_matching(options, rows).sum())


def _matching(options: Clean, rows: pa.Table) -> np.ndarray:
    """Which rows are to be removed: bool, one per row."""
    matching = np.ones(rows.num_rows, bool)
    if options.snapshot:
        matching &= np.asarray(pc.equal(rows["snapshot"], options.snapshot))
    if options.steps:
        matching &= np.isin(np.asarray(rows["step"]), options.steps)
    return matching


def _describe(folders: list[FolderContents], rows_by_model: dict[str, int], unknown_entries: list[str]) -> str:
    """What is to be removed and what stays: a line per partition and folder, the totals, a line per unknown file."""
    lines = [f"{layout.index_folder(name):<28} {count:,} rows" for name, count in rows_by_model.items()]
    lines += [contents.describe() for contents in folders if contents.files]
    rows = sum(rows_by_model.values())
    files = sum(contents.count_files() for contents in folders)
    size = sum(contents.bytes for contents in folders)
    lines.append(f"to remove: {rows:,} rows, {files:,} files, {size:,} bytes")
    for contents in folders:
        lines += [f"stays: {path}" for path in contents.unknown_files]
    lines += [f"stays: {name}" for name in unknown_entries]
    return "\n".join(lines)


def _confirm(options: Clean, output: Output) -> None:
    if options.yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise OutputRefused(
            "No terminal to confirm on: pass --yes (try --dry_run first, it prints what would be removed)"
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
