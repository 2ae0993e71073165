"""The command `query`: SQL or a preset on an output's views, as a table or file; an error is one line with a position.
Knows how queries run and how answers are written; the views are in `views`."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa

from actors import families
from ray_app.errors import OK, InputRefused, one_line
from ray_app.features import parts as feature_parts
from ray_app.files import check_place, whole_file
from ray_app.index.partition import MAX_READ_ATTEMPTS
from ray_app.index.schema import COLUMNS
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import working
from ray_app.query import row_formats, views
from ray_app.query.options import Query

Write = Callable[[pa.Schema, Iterator[pa.RecordBatch]], object]
"""Writes the columns and the rows of an answer."""

ROWS_A_BATCH = 10_000
WAIT_SECONDS = 0.1
PLACE = 24
"""How many characters of the SQL an error shows, from its position on."""

PRESETS = {
    "steps": """
SELECT model, snapshot, step, count(*) FILTER (status = 'ok') AS images, count(*) FILTER (status = 'failed') AS failed,
       sum(bytes) AS bytes, avg(bytes)::BIGINT AS bytes_an_image, max(created_at) AS newest
FROM images GROUP BY ALL ORDER BY model, snapshot DESC, step""",
    "failures": """
SELECT model, query_id, prompt_index, image_index, list(DISTINCT step ORDER BY step) AS steps, error_type,
       any_value(error_message) AS error_message, any_value(prompt) AS prompt
FROM images WHERE status = 'failed' GROUP BY ALL ORDER BY ALL""",
    "timing": """
SELECT model, step, batch_size, count(DISTINCT denoise_id) AS denoises, avg(denoise_seconds) AS denoise_seconds,
       quantile_cont(denoise_seconds, 0.5) AS median, quantile_cont(denoise_seconds, 0.95) AS p95,
       avg(decode_seconds) AS decode_seconds
FROM images WHERE status = 'ok' GROUP BY ALL ORDER BY ALL""",
    "duplicates": """
SELECT model, denoise_id, seed, count(DISTINCT (query_id, prompt_index, image_index)) AS slots,
       list(DISTINCT query_id ORDER BY query_id) AS query_ids, any_value(prompt) AS prompt
FROM images GROUP BY ALL HAVING slots > 1 ORDER BY slots DESC, denoise_id""",
    "shared_references": """
SELECT model, reference_img_id, list(DISTINCT query_id ORDER BY query_id) AS query_ids,
       list(DISTINCT split_part(path, '/', 2) ORDER BY split_part(path, '/', 2)) AS folders
FROM images GROUP BY ALL HAVING len(query_ids) > 1 ORDER BY ALL""",
}
"""The SQL of --preset."""


def query(options: Query) -> int:
    """Answer a query; the exit code.

    Raises:
        Refused: the output has no index, wrong SQL, a file that can't be written.
    """
    if options.schema:
        print(schema())
        return OK
    sql = options.sql if options.preset is None else PRESETS[options.preset]
    output = open_output(options.output_base_path)
    write = _writer(options)
    answer(output, str(sql), write)
    return OK


def answer(output: Output, sql: str, write: Write) -> None:
    """Run one SELECT and write its rows batch by batch, without those of parts that turn out to be damaged."""
    for _ in range(MAX_READ_ATTEMPTS):
        try:
            with working("querying the index") as end, views.connected(output) as connection:
                _interruptible(connection, lambda connection=connection, end=end: _run(connection, sql, write, end))
                return
        except FileNotFoundError:
            continue  # compaction: the part's rows are in another part by now
        except (duckdb.Error, pa.ArrowException) as error:
            # DuckDB reports what it can't decode in many ways
            if _may_be_of_a_file(error) and views.find_damaged(output):
                continue
            raise InputRefused(_explained(error, sql)) from None
    raise InputRefused(f"{output.display_path('index')}: its parts keep changing (is it being compacted?); try again")


def schema() -> str:
    """The views, column by column."""
    lines = ["images: the newest row of each image"]
    lines.append(_schema_line("model", "string", f"{families.listed()}; the index's partition"))
    lines += [_schema_line(name, str(column.type), column.meaning) for name, column in COLUMNS.items()]
    lines += ["", "features: one row per image or text, encoder and preprocessing"]
    lines += [_schema_line(name, str(kind), meaning) for name, (kind, meaning) in feature_parts.COLUMNS.items()]
    lines += ["", "runs: one row per run of generate"]
    lines += [_schema_line(name, str(kind), meaning) for name, (kind, meaning) in views.RUN_COLUMNS.items()]
    lines += ["", "features, evaluation: what `features` and `evaluate` wrote, if they have; DESCRIBE features"]
    return "\n".join(lines)


def _schema_line(name: str, kind: str, meaning: str) -> str:
    return f"  {name:<20} {kind:<22} {meaning}"


def _interruptible(connection: duckdb.DuckDBPyConnection, run: Callable[[], object]) -> None:
    """Run a function in a thread of its own: the main thread sees no signal while it waits for DuckDB."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        try:
            while not wait([running], timeout=WAIT_SECONDS).done:
                pass
        except KeyboardInterrupt:
            while not running.done():
                connection.interrupt()
                time.sleep(WAIT_SECONDS)
            raise
        running.result()


def _run(connection: duckdb.DuckDBPyConnection, sql: str, write: Write, begin: Callable[[], object]) -> None:
    """Write the rows of one SELECT, and call `begin` before the first of them."""
    statements = connection.extract_statements(sql)
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)
    if len(statements) != 1:
        raise InputRefused(f"SQL: {len(statements)} statements; give one SELECT")
    if statements[0].type not in allowed:
        kind = statements[0].type.name
        raise InputRefused(f"SQL: {kind} is not allowed; only SELECT, DESCRIBE, SUMMARIZE, EXPLAIN")
    try:
        relation = connection.sql(sql)
    except duckdb.Error:
        connection.execute(sql)  # raises the same error, with its position in the SQL
        raise
    if relation is None:
        raise InputRefused("SQL: returns no rows; give one SELECT")
    reader = relation.to_arrow_reader(ROWS_A_BATCH)
    batches = iter(reader)
    first = list(itertools.islice(batches, 1))
    begin()
    write(reader.schema, itertools.chain(first, batches))


def _writer(options: Query) -> Write:
    """What writes the answer: to the terminal, or to a file, which is written whole or not at all."""
    if options.output is None:
        return lambda schema, batches: _write_rows(sys.stdout, options.format or "table", schema, batches)
    path = Path(options.output).expanduser().absolute()
    kind = options.format or {".csv": "csv", ".json": "json", ".parquet": "parquet"}.get(path.suffix, "table")
    check_place(path, "--output")

    def write(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        with whole_file(path, "--output") as staged:
            if kind == "parquet":
                row_formats.write_parquet(str(staged), schema, batches)
                return
            with open(staged, "w", encoding="utf-8", newline="") as file:
                _write_rows(file, kind, schema, batches)

    return write


def _write_rows(file: TextIO, kind: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    if kind == "table":
        most = row_formats.TABLE_ROWS if file is sys.stdout else None
        row_formats.write_table(file, schema, batches, most)
    elif kind == "csv":
        row_formats.write_csv(file, schema, batches)
    else:
        row_formats.write_json(file, schema, batches)
    file.flush()


def _may_be_of_a_file(error: Exception) -> bool:
    """Whether the error may come from reading a part rather than from the SQL."""
    of_sql = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.PermissionException)
    return not isinstance(error, (*of_sql, duckdb.ConversionException, duckdb.SyntaxException))


def _explained(error: Exception, sql: str) -> str:
    """DuckDB's message on one line, with its position in the SQL if DuckDB reports one."""
    text = str(error)
    try:
        fields: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError:
        return f"SQL: {one_line(error)}"
    message = " ".join(str(fields.get("exception_message", text)).split())
    if "position" not in fields:
        return f"SQL: {message}"
    # DuckDB counts bytes
    sql_before = sql.encode()[: int(fields["position"])].decode(errors="replace")
    line, column = sql_before.count("\n") + 1, len(sql_before) - sql_before.rfind("\n")
    excerpt = " ".join(sql[len(sql_before) : len(sql_before) + PLACE].split())
    place = f" (at: {excerpt})" if excerpt else ""
    return f"SQL: line {line} column {column}: {message}{place}"
