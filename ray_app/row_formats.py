"""Rows as a person or a program wants them: a plain table, csv, json, parquet. Batch by batch, never all at once.
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
"""Characters of a table's cell; csv and json have them all."""


def write_table(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch], most: int | None) -> None:
    """Columns under their names, numbers to the right; the first `most` rows, and how many more there are."""
    rows = _rows(batches)
    if schema.names == ["explain_key", "explain_value"]:  # a drawing of many lines
        file.writelines(f"{text}\n" for _, text in rows)
        return
    shown = [[_cell(value) for value in row] for row in itertools.islice(rows, most)]
    widths = [max(map(len, column)) for column in zip(schema.names, *shown, strict=True)]
    rule = ["-" * width for width in widths]
    right = [column for column, kind in enumerate(schema.types) if _is_number(kind)]
    file.writelines(f"{line}\n" for line in text_table.align([schema.names, rule, *shown], right))
    more = sum(1 for _ in rows)
    if more:
        file.write(f"and {more:,} more rows: --format csv shows all\n")


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def write_csv(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """With a header; null is empty, lists are JSON."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(schema.names)
    for row in _rows(batches):
        writer.writerow(
            "" if value is None else _json(value) if isinstance(value, list | dict | bool) else _plain(value)
            for value in row
        )


def write_json(file: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """One list of objects, a line each."""
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


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = _json(value) if isinstance(value, list | dict | bool) else str(_plain(value))
    if isinstance(value, float):
        text = f"{value:.6g}"
    text = " ".join(text.split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """What JSON has for it: whole decimals are numbers, times ISO texts, what is no number is null."""
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
