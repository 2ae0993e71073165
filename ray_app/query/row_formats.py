"""Rows in a format for people or programs: a plain table, csv, json, parquet. Batch by batch, never all in memory.
Knows Arrow batches; nothing of where they come from."""

import csv
import datetime
import decimal
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app import text_table

TABLE_ROWS = 100
CELL = 60
"""Most characters of a table's cell; csv and json have the whole text."""


def write_table(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch], most: int | None) -> None:
    """A table with aligned columns, numbers to the right; the first `most` rows, and how many more there are."""
    rows = _rows(batches)
    if schema.names == ["explain_key", "explain_value"]:  # EXPLAIN: a value is a chart of many lines
        for _, text in rows:
            file.write(f"{text}\n")
        return
    cells = []
    for row in itertools.islice(rows, most):
        cells.append([_cell(value) for value in row])
    columns = zip(schema.names, *cells, strict=True)
    rule = ["-" * max(map(len, column)) for column in columns]
    numeric = [column for column, kind in enumerate(schema.types) if _is_number(kind)]
    for line in text_table.align([schema.names, rule, *cells], right=numeric):
        file.write(f"{line}\n")
    rows_left_out = sum(1 for _ in rows)
    if rows_left_out:
        file.write(f"and {rows_left_out:,} more rows: --format csv shows all\n")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def write_csv(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """With a header; null is empty, lists are JSON."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(schema.names)
    for row in _rows(batches):
        writer.writerow([_csv_field(value) for value in row])


def write_json(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """One list of objects, one per line."""
    file.write("[")
    for number, row in enumerate(_rows(batches)):
        file.write(",\n " if number else "\n ")
        file.write(_json(dict(zip(schema.names, row, strict=True))))
    file.write("\n]\n")


def write_parquet(path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """zstd, with the columns' own types."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _csv_field(value: Any) -> Any:
    if value is None:
        return ""
    return _json(value) if isinstance(value, list | dict | bool) else _plain(value)


def _cell(value: Any) -> str:
    """A value as a table shows it: on one line, cut to `CELL` characters."""
    if value is None:
        return ""
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list | dict | bool):
        text = _json(value)
    else:
        text = str(_plain(value))
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: decimals as numbers, times as ISO texts, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return value if isinstance(value, str | int | float | None) else str(value)
