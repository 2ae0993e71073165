"""Repairs that need no GPU: rows without files, files without rows, stale caches and staging, unreadable parts.
Knows the kinds of problems and the order that keeps the index valid; quarantines files rather than removing them."""

import collections
import contextlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from actors.families import FAMILIES
from ray_app.index.schema import KEY
from ray_app.maintenance.checks import UNREADABLE_PART, Model, Problem
from ray_app.maintenance.rewrite import rewrite
from ray_app.output import layout
from ray_app.output.output import Output, Writer


def repair(writer: Writer, models: Iterable[Model], problems: list[Problem]) -> dict[str, int]:
    """Repair what can be repaired, rows before files, so that the index stays valid if this is killed; the counts.

    Raises:
        Refused: another process is rewriting the index.
    """
    output = writer.output
    done: collections.Counter[str] = collections.Counter()
    damaged = [problem for problem in problems if problem.kind == UNREADABLE_PART]
    files = [problem for problem in problems if problem.is_.quarantines_file]
    done["parts set aside"] += _quarantine(output, damaged)
    # before rows and files: if the repair is killed after those, nothing shows any more that the caches are stale
    done["feature caches removed"] += _remove_caches(output, problems)
    for model in models:
        of_model = [problem for problem in problems if problem.model_type == model.model_type]
        row_numbers = [problem.row for problem in of_model if problem.is_.drops_row]
        if row_numbers:
            rows = model.all_rows.select([*KEY, "created_at"]).take(pa.array(row_numbers))
            done["rows dropped"] += rewrite(writer, model.model_type, MatchesRows(rows)).dropped
    done["files set aside"] += _quarantine(output, files)
    done["leftovers removed"] += _remove_leftovers(output, problems)
    return {what: count for what, count in done.items() if count}


def to_redraw(problems: list[Problem]) -> dict[str, int]:
    """How many images of each step's folder the next `generate` generates, as far as the problems show."""
    folders = (problem.name.split("/")[0].split(":")[0] for problem in problems if problem.is_.is_regenerated)
    return dict(sorted(collections.Counter(folders).items()))


class MatchesRows:
    """A `rewrite.Drop` of exactly these rows: the newer row of an image that was regenerated meanwhile stays."""

    def __init__(self, rows: pa.Table):
        self.rows = {tuple(row.values()) for row in rows.to_pylist()}
        self.query_ids = rows["query_id"].unique().to_pylist()

    def __call__(self, rows: pa.Table) -> np.ndarray:
        # only rows of the same queries are compared one by one: an index has millions
        is_dropped = np.isin(np.asarray(rows["query_id"]), self.query_ids)
        (candidates,) = np.nonzero(is_dropped)
        for number, row in zip(candidates, rows.take(pa.array(candidates)).to_pylist(), strict=True):
            is_dropped[number] = tuple(row.values()) in self.rows
        return is_dropped


def _quarantine(output: Output, problems: list[Problem]) -> int:
    count = 0
    for problem in problems:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            output.quarantine(problem.name)
            count += 1
    return count


def _remove_caches(output: Output, problems: list[Problem]) -> int:
    """Remove caches that are stale, and those of folders that are about to lose an image; how many."""
    folders = set()
    for problem in problems:
        if problem.is_.drops_row or problem.is_.quarantines_file or problem.kind == "stale cache":
            folders.add(problem.name.split("/")[0])
    return sum(output.remove_feature_caches(folder) for folder in sorted(folders))


def _remove_leftovers(output: Output, problems: list[Problem]) -> int:
    leftovers = [problem.name for problem in problems if problem.kind == "leftover"]
    with contextlib.ExitStack() as locks:  # compact and clean keep no record: their staged files may be in use
        for model_type in FAMILIES:
            if output.list_names(layout.index_folder(model_type), "*"):
                locks.enter_context(output.locked(layout.index_folder(model_type)))
        for name in leftovers:
            output.remove(name)
        for folder in {name.split("/")[1] for name in leftovers if name.count("/") > 1}:
            output.remove_empty(f"{layout.STAGING}/{folder}")
    return len(leftovers)
