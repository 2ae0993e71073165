"""Rewrites a partition of the index as few sorted parts: what `compact`, `clean` and `verify --repair` share.
Knows parts and the order in which they may be written and removed; nothing of the images."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.index.rows import find_newest
from ray_app.index.schema import KEY, with_sources
from ray_app.output import layout
from ray_app.output.output import Output, Sink, Writer

ROWS_A_PART = 1_000_000
ROWS_A_GROUP = 100_000
"""Sorted row groups of this size let a reader skip most of a part."""

COLUMNS = (*KEY, "created_at")

Drop = Callable[[pa.Table], np.ndarray]
"""Tells which of some rows with `COLUMNS` are dropped: bool, one per row."""


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A partition before and after. Damaged parts are neither changed nor counted."""

    parts_before: int
    parts: int
    rows_before: int
    rows: int
    dropped: int
    damaged: dict[str, str]


def rewrite(writer: Writer, model_type: str, drop: Drop | None = None) -> Rewritten:
    """Replace a partition's parts by few sorted ones with the newest row of each key, without the dropped ones.

    Whenever it is killed, readers see every key that is kept, and of a dropped key its newest row or none. Parts that
    appear meanwhile are not touched. Writes nothing if nothing would change, or if no row is dropped.

    Raises:
        Refused: another process is rewriting this partition.
    """
    output = writer.output
    if not output.list_names(layout.index_folder(model_type), "*.parquet"):
        return Rewritten(0, 0, 0, 0, 0, {})
    with output.locked(layout.index_folder(model_type)):
        sequence = itertools.count()
        old, rows = _open_partition(output, model_type)
        parts_before, rows_before = len(old.names), rows.num_rows
        newest, dropped = _newest(rows, drop)
        if dropped.any() and len(newest) < rows_before:
            # Old parts are removed one by one, and the last row of a dropped key must not be an older one, which would
            # count again: superseded rows are removed first.
            _replace(writer, model_type, old, newest, sequence)
            old, rows = _open_partition(output, model_type)
            newest, dropped = _newest(rows, drop)
        kept, parts_now = newest[~dropped], len(old.names)
        is_compact = _is_compact(len(old.names), newest, rows.num_rows)
        if dropped.any() or (drop is None and not is_compact):
            parts_now = _replace(writer, model_type, old, kept, sequence)
        return Rewritten(parts_before, parts_now, rows_before, len(kept), int(dropped.sum()), old.damaged)


@retry_if_compacted
def _open_partition(output: Output, model_type: str) -> tuple[Partition, pa.Table]:
    """The partition, and `COLUMNS` of its rows."""
    partition = Partition.open(output, model_type)
    return partition, partition.read(COLUMNS)


def _newest(rows: pa.Table, drop: Drop | None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the newest rows in the order of their keys, and which of those are dropped."""
    newest = find_newest(rows)
    if drop is None:
        return newest, np.zeros(len(newest), bool)
    return newest, drop(rows.take(pa.array(newest)))


def _is_compact(parts: int, newest: np.ndarray, rows: int) -> bool:
    """Whether compaction would leave this number of parts with these rows as they are."""
    return parts <= math.ceil(rows / ROWS_A_PART) and np.array_equal(newest, np.arange(rows))


def _replace(writer: Writer, model_type: str, old: Partition, kept: np.ndarray, sequence: Iterator[int]) -> int:
    """Write the rows of these numbers as new parts, then remove the old ones; how many new parts there are."""
    output, schema = writer.output, with_sources(old.recipes, old.versions, old.schema, old.hardware)
    new: list[str] = []
    try:
        for start in range(0, len(kept), ROWS_A_PART):
            new.append(layout.index_part(model_type, writer.run_id, next(sequence)))
            writer.write_with(new[-1], functools.partial(_write_part, old, kept[start : start + ROWS_A_PART], schema))
            output.sync(new[-1])
            pa.default_memory_pool().release_unused()  # it holds the rows of a part more than once
        output.sync(layout.index_folder(model_type))  # or a power cut could lose the new parts and not the removal
    except BaseException:  # the old parts still have all rows, and each new try would double the rest
        with contextlib.suppress(OSError):
            output.remove_all(new)
        raise
    output.remove_all(old.names)
    return len(new)


def _write_part(old: Partition, numbers: np.ndarray, schema: pa.Schema, sink: Sink) -> None:
    table = old.take(numbers, schema)
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_A_GROUP, write_page_checksum=True)
