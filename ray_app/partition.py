"""The parts of a partition, one by one: rows by their number, recipes, and by name the parts that can't be read.
Knows Parquet; nothing of why a row is wanted."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_app import index, parts
from ray_app.errors import Refused, one_line
from ray_app.parts import RECIPES_KEY
from ray_app.storage import Storage


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts that a listing found, and some columns of all their rows, part after part.

    A row's number is its place in `rows`; those of part i begin at `starts[i]` and end before `starts[i + 1]`.
    """

    storage: Storage
    names: list[str]
    starts: np.ndarray
    rows: pa.Table
    recipes: dict[str, dict[str, Any]]  # of all parts, by fingerprint
    unreadable: dict[str, str]  # name and reason

    def take(self, numbers: np.ndarray, schema: pa.Schema = index.SCHEMA) -> pa.Table:
        """The rows of these numbers with the schema's columns, in the order of the numbers; read part by part.

        Raises:
            FileNotFoundError: a part is gone since it was listed.
        """
        ascending = np.sort(numbers)
        bounds = np.searchsorted(ascending, self.starts)
        pieces = [schema.empty_table()]
        for part, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first == last:
                continue
            with parts.opened(self.storage, self.names[part]) as file:
                table = _conform(file.read([name for name in schema.names if name in file.schema_arrow.names]), schema)
            here = ascending[first:last] - self.starts[part]
            pieces.append(table if len(here) == table.num_rows else table.take(pa.array(here)))
        table = pa.concat_tables(pieces)
        del pieces
        in_order = np.searchsorted(ascending, numbers)
        return table if (in_order == np.arange(len(in_order))).all() else table.take(pa.array(in_order))


@index.relisted
def read(storage: Storage, model_type: str, columns: Sequence[str], whole: bool = False) -> Parts:
    """Read these columns of every part that can be read.

    Args:
        whole: read everything else too and forget it, so that a part damaged anywhere is found.
    """
    names, tables, recipes, unreadable = [], [], {}, {}
    schema = pa.schema([index.SCHEMA.field(name) for name in columns])
    for name in index.part_names(storage, model_type):
        try:
            with parts.opened(storage, name) as file:
                table = _columns(file, schema, whole)
                recipes |= json.loads((file.schema_arrow.metadata or {}).get(RECIPES_KEY, b"{}"))
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            if storage.everywhere and (why := storage.failed(error)):
                raise Refused(f"{storage.at(name)}: can't be read: {why}") from error
            unreadable[name] = one_line(error, 200)
            continue
        names.append(name)
        tables.append(table)
    starts = np.cumsum([0, *(table.num_rows for table in tables)])
    return Parts(storage, names, starts, pa.concat_tables([schema.empty_table(), *tables]), recipes, unreadable)


def _columns(file: pq.ParquetFile, schema: pa.Schema, whole: bool) -> pa.Table:
    missing = [name for name in schema.names if name not in file.schema_arrow.names]
    if missing:
        raise pa.ArrowInvalid(f"no column {missing[0]}")
    if not whole:
        return _conform(file.read(schema.names), schema)
    groups = (_conform(file.read_row_group(number), schema) for number in range(file.num_row_groups))
    return pa.concat_tables([schema.empty_table(), *groups])


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The schema's columns in its order and types; null where the part is too old to have one."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
