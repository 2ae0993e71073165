"""`export --format ipcir`: reads the tree as retrieval scripts do and reports what they would misread; --by_query.
Knows how those scripts list `combined/` and split names; the index tells which query an image belongs to."""

import collections
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_app import text_table
from ray_app.errors import OK, PROBLEMS
from ray_app.export.options import Export
from ray_app.index.rows import is_of_capture
from ray_app.index.trajectories import OK as IS_OK
from ray_app.index.trajectories import Trajectories
from ray_app.messages import summarize
from ray_app.output import layout, remote
from ray_app.output.output import Output
from ray_app.progress import working

MOST_NAMED = 20

WRITES_FOLDER = False


def export(output: Output, options: Export) -> int:
    """Check every step's folder, and write the trees of second queries with --by_query; the exit code."""
    shown = Trajectories(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    problems = 0
    reference_of_second: dict[int, str] = {}
    for model_type in shown.models:
        for snapshot, step in shown.captures:
            rows = _rows(shown, model_type, snapshot, step)
            if rows:
                problems += _report_folder(output, layout.step_folder(model_type, snapshot, step), rows)
                reference_of_second |= _second_queries(rows)
    lines = (
        f"query {query}: retrieval scripts find another query's images under its reference {reference}"
        for query, reference in sorted(reference_of_second.items())
    )
    for line in text_table.first(lines, MOST_NAMED, " such queries"):
        print(line)
    if reference_of_second and not options.by_query:
        summarize("for a tree with their images: --by_query --export_path FOLDER")
    if options.by_query:
        _write_trees(output, shown, options)
    return PROBLEMS if problems else OK


def _rows(shown: Trajectories, model_type: str, snapshot: str, step: int) -> list[dict[str, Any]]:
    rows = shown.rows(model_type)
    return rows.filter(pa.array(is_of_capture(rows, snapshot, step))).to_pylist()


def _is_in_combined(row: dict[str, Any]) -> bool:
    return row["path"].split("/")[1] == layout.COMBINED


def _second_queries(rows: list[dict[str, Any]]) -> dict[int, str]:
    """The reference of each query whose images are not in `combined`, since an earlier query has the same reference."""
    return {row["query_id"]: row["reference_img_id"] for row in rows if not _is_in_combined(row)}


def _report_folder(output: Output, folder: str, rows: list[dict[str, Any]]) -> int:
    """Print what scripts read in a step's folder, and each problem; the number of problems."""
    prefix = f"{layout.COMBINED}/"
    names = sorted(name.removeprefix(prefix) for name in output.file_sizes(folder) if name.startswith(prefix))
    problems = list(_problems(names, [row for row in rows if _is_in_combined(row)]))
    counts = collections.Counter(filter(None, map(_reference, names)))
    numbers = ", ".join(f"{count:,}" for count in sorted(set(counts.values())))
    verdict = "" if problems else ": scripts read it"
    print(f"{folder}: {len(counts):,} references, {numbers or 0} images each{verdict}")
    for line in text_table.first(problems, MOST_NAMED, " (`proxyqueue verify` names all)"):
        print(f"  {line}")
    return len(problems)


def _reference(name: str) -> str | None:
    """The reference id as scripts take it from a file's name."""
    parts = name.split("_")
    return parts[1] if len(parts) > 1 else None


def _problems(names: list[str], rows: list[dict[str, Any]]) -> Iterator[str]:
    row_of_name = {row["path"].rsplit("/", 1)[1]: row for row in rows}
    for name in names:
        if name not in row_of_name:
            yield f"{name}: not an image of the index; scripts read it as one of reference {_reference(name)}"
    for name, row in row_of_name.items():
        if row["status"] != IS_OK:
            reason = f"failed: {row['error_type']}" if row["status"] == "failed" else "missing"
            yield f"{name}: {reason}; reference {row['reference_img_id']} has one image fewer"
        elif _reference(name) != row["reference_img_id"]:
            yield f"{name}: scripts read its reference as {_reference(name)}, it is {row['reference_img_id']}"
    counts = collections.Counter(row["reference_img_id"] for row in rows)
    most = max(counts.values(), default=0)
    for reference, count in counts.items():
        if count != most:
            yield f"reference {reference}: {count} images were requested, {most} of others"


def _write_trees(output: Output, shown: Trajectories, options: Export) -> None:
    """Write EXPORT/query2, a complete tree in which shared references have their second query's images; query3, …"""
    with working("writing the trees"), options.new_folder() as folder:
        written = 0
        for model_type in shown.models:
            for snapshot, step in shown.captures:
                rows = _rows(shown, model_type, snapshot, step)
                for number, chosen in _trees(rows):
                    step_folder = layout.step_folder(model_type, snapshot, step)
                    combined = folder / f"query{number}" / step_folder / layout.COMBINED
                    combined.mkdir(parents=True, exist_ok=True)
                    for row in chosen:
                        _link_or_copy(output, row["path"], combined / row["path"].rsplit("/", 1)[1])
                        written += 1
    reason = "" if written else ", since no two queries share a reference"
    summarize(f"{options.export_path}: {written:,} images{reason}")


def _trees(rows: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(2, rows), (3, rows), …: of each reference the images of its second, third, … query, else those of its first.

    The first query of a reference is the one whose images are in `combined`; the others follow by their ids.
    """
    first_query = {row["reference_img_id"]: row["query_id"] for row in rows if _is_in_combined(row)}
    queries_of_reference: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: row["query_id"]):
        queries = queries_of_reference.setdefault(row["reference_img_id"], [])
        if row["query_id"] in queries:
            continue
        if row["query_id"] == first_query.get(row["reference_img_id"]):
            queries.insert(0, row["query_id"])
        else:
            queries.append(row["query_id"])
    most_queries = max(map(len, queries_of_reference.values()), default=0)
    for number in range(2, most_queries + 1):
        chosen = set()
        for queries in queries_of_reference.values():
            chosen.add(queries[number - 1] if len(queries) >= number else queries[0])
        yield number, [row for row in rows if row["query_id"] in chosen and row["status"] == IS_OK]


def _link_or_copy(output: Output, path: str, target: Path) -> None:
    """Link the file where that is possible, else copy it. An image file is never changed, only replaced."""
    if not remote.is_remote(output.url):
        with contextlib.suppress(OSError):
            os.link(output.path(path), target)
            return
    target.write_bytes(output.read(path))
