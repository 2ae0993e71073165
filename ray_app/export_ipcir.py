"""`export --format ipcir`: read the tree as retrieval scripts do, and say what they would get wrong; --by_query.
Knows how those scripts list `combined/` and split names; the index tells which query an image is of."""

import collections
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute

from ray_app import layout, remote, text_table
from ray_app.ask_options import Export
from ray_app.errors import OK, PROBLEMS
from ray_app.export import new_folder
from ray_app.storage import Output
from ray_app.trajectories import OK as IS_OK
from ray_app.trajectories import Trajectories

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

MOST_NAMED = 20


def export(output: Output, options: Export) -> int:
    """Check every step's folder, and write second queries' trees if asked; the exit code."""
    shown = Trajectories(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    problems = 0
    second: dict[int, str] = {}
    for model_type in shown.models:
        for snapshot, step in shown.captures:
            rows = _rows(shown, model_type, snapshot, step)
            if rows:
                problems += _report_folder(output, layout.step_folder(model_type, snapshot, step), rows)
                second |= {query: row["reference_img_id"] for query, row in _not_first(rows).items()}
    lines = (
        f"query {query}: retrieval scripts find another query's images under its reference {reference}"
        for query, reference in sorted(second.items())
    )
    for line in text_table.first(lines, MOST_NAMED, " such queries"):
        print(line)
    if second and not options.by_query:
        print("a tree for these: --by_query --export_path FOLDER")
    if options.by_query:
        _write_trees(output, shown, str(options.export_path))
    return PROBLEMS if problems else OK


def _rows(shown: Trajectories, model_type: str, snapshot: str, step: int) -> list[dict[str, Any]]:
    rows = shown.rows(model_type)
    here = pc.and_(pc.equal(rows["snapshot"], snapshot), pc.equal(rows["step"], step))
    return rows.filter(here).to_pylist()


def _not_first(rows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Rows, one a query, of those whose images are not in `combined`."""
    return {row["query_id"]: row for row in rows if row["path"].split("/")[1] != layout.COMBINED}


def _report_folder(output: Output, folder: str, rows: list[dict[str, Any]]) -> int:
    """Say what scripts read of a step's folder, and each problem; how many there are."""
    names = sorted(
        name.removeprefix(f"{layout.COMBINED}/")
        for name in output.file_sizes(folder)
        if name.startswith(f"{layout.COMBINED}/")
    )
    mine = [row for row in rows if row["path"].split("/")[1] == layout.COMBINED]
    problems = list(_problems(names, mine))
    counts = collections.Counter(filter(None, map(_reference, names)))
    each = ", ".join(f"{count:,}" for count in sorted(set(counts.values())))
    print(
        f"{folder}: {len(counts):,} references, {each or 0} images each" + (": scripts read it" if not problems else "")
    )
    for line in text_table.first(problems, MOST_NAMED, " (`proxyqueue verify` names all)"):
        print(f"  {line}")
    return len(problems)


def _reference(name: str) -> str | None:
    """The reference id as scripts take it from a file's name."""
    parts = name.split("_")
    return parts[1] if len(parts) > 1 else None


def _problems(names: list[str], rows: list[dict[str, Any]]) -> Iterator[str]:
    wanted = {row["path"].rsplit("/", 1)[1]: row for row in rows}
    for name in names:
        if name not in wanted:
            yield f"{name}: no image of the index; scripts read it as one of reference {_reference(name)}"
    for name, row in wanted.items():
        if row["status"] != IS_OK:
            why = f"failed: {row['error_type']}" if row["status"] == "failed" else "not there"
            yield f"{name}: {why}; reference {row['reference_img_id']} has an image less"
        elif _reference(name) != row["reference_img_id"]:
            yield f"{name}: scripts read its reference as {_reference(name)}, it is {row['reference_img_id']}"
    counts = collections.Counter(row["reference_img_id"] for row in rows)
    usual = max(counts.values(), default=0)
    for reference, count in counts.items():
        if count != usual:
            yield f"reference {reference}: {count} images were asked for, {usual} of others"


def _write_trees(output: Output, shown: Trajectories, path: str) -> None:
    """EXPORT/query2: complete, but each shared reference has its second query's images; query3 for third ones, …"""
    with new_folder(path) as folder:
        written = 0
        for model_type in shown.models:
            for snapshot, step in shown.captures:
                rows = _rows(shown, model_type, snapshot, step)
                for number, chosen in _trees(rows):
                    tree = folder / f"query{number}" / layout.step_folder(model_type, snapshot, step) / layout.COMBINED
                    tree.mkdir(parents=True, exist_ok=True)
                    for row in chosen:
                        _link_or_copy(output, row["path"], tree / row["path"].rsplit("/", 1)[1])
                        written += 1
    print(f"{path}: {written:,} images" + ("" if written else ", since no two queries share a reference"))


def _trees(rows: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(2, rows), (3, rows), …: of each reference the images of its so-manieth query, or of its first."""
    queries: dict[str, list[int]] = {}
    owner = {row["reference_img_id"]: row["query_id"] for row in rows if row["query_id"] not in _not_first([row])}
    for row in sorted(rows, key=lambda row: (row["query_id"] != owner.get(row["reference_img_id"]), row["query_id"])):
        mine = queries.setdefault(row["reference_img_id"], [])
        if row["query_id"] not in mine:
            mine.append(row["query_id"])
    for number in range(2, max(map(len, queries.values()), default=0) + 1):
        chosen = {mine[number - 1] if len(mine) >= number else mine[0] for mine in queries.values()}
        yield number, [row for row in rows if row["query_id"] in chosen and row["status"] == IS_OK]


def _link_or_copy(output: Output, path: str, target: Path) -> None:
    """The very same file where it can be linked: an image is never changed, only replaced. Else a copy."""
    if not remote.is_remote(output.url):
        with contextlib.suppress(OSError):
            os.link(output.path(path), target)
            return
    target.write_bytes(output.read(path))
