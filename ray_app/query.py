"""The verb `query`: SQL or a preset on an output's views, as a table or a file; an error is one line with its place.
Knows what is asked and how it is said; the views are in `views`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TextIO

import duckdb
import pyarrow as pa

from ray_app import row_formats, views
from ray_app.ask_options import Query
from ray_app.errors import OK, InputRefused, one_line
from ray_app.files import check_place, whole_file
from ray_app.partition import MAX_READ_ATTEMPTS
from ray_app.schema import COLUMNS
from ray_app.storage import Output, open_output

Write = Callable[[pa.Schema, Iterator[pa.RecordBatch]], object]
"""Takes the columns and the rows of an answer."""

ROWS_A_BATCH = 10_000
WAIT_SECONDS = 0.1
PLACE = 24
"""Characters of the SQL that an error shows from its place on."""

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
    """Answer; the exit code.

    Raises:
        Refused: nothing or several things are asked, no index there, wrong SQL, a file that can't be written.
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
    """Run one SELECT and hand its rows on, batch by batch. Without the parts that turn out to be damaged."""
    for _ in range(MAX_READ_ATTEMPTS):
        try:
            with views.connected(output) as connection:
                _interruptible(connection, lambda connection=connection: _run(connection, sql, write))
                return
        except FileNotFoundError:
            continue  # compaction: the part's rows stand in another by now
        except (duckdb.Error, pa.ArrowException) as error:
            # DuckDB calls what it can't decode by many names
            if _is_of_a_file(error) and views.find_damaged(output):
                continue
            raise InputRefused(_explained(error, sql)) from None
    raise InputRefused(f"{output.display_path('index')}: its parts come and go; try again")


def schema() -> str:
    """Both views, column by column."""
    lines = ["images: the newest row of each image"]
    model = ("model", "string", "sdxl or flux; the index's partition")
    images = [model, *((name, str(column.type), column.meaning) for name, column in COLUMNS.items())]
    runs = [(name, str(kind), text) for name, (kind, text) in views.RUN_COLUMNS.items()]
    lines += [f"  {name:<20} {kind:<22} {text}" for name, kind, text in images]
    lines += ["", "runs: one row a run of generate"]
    lines += [f"  {name:<20} {kind:<22} {text}" for name, kind, text in runs]
    return "\n".join(lines)


def _interruptible(connection: duckdb.DuckDBPyConnection, run: Callable[[], object]) -> None:
    """Run it in a thread of its own: in one that waits for DuckDB no signal would be seen."""
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


def _run(connection: duckdb.DuckDBPyConnection, sql: str, write: Write) -> None:
    statements = connection.extract_statements(sql)
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)
    if len(statements) != 1:
        raise InputRefused(f"SQL: {len(statements)} statements; one SELECT is answered")
    if statements[0].type not in allowed:
        kind = statements[0].type.name
        raise InputRefused(f"SQL: {kind} is not allowed; only SELECT, DESCRIBE, SUMMARIZE, EXPLAIN")
    try:
        relation = connection.sql(sql)
    except duckdb.Error:
        connection.execute(sql)  # the same error, and this one tells its place
        raise
    if relation is None:
        raise InputRefused("SQL: gives no rows; one SELECT is answered")
    reader = relation.to_arrow_reader(ROWS_A_BATCH)
    write(reader.schema, iter(reader))


def _writer(options: Query) -> Write:
    """What takes the answer: the terminal, or a file that is there whole or not at all."""
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
    else:
        {"csv": row_formats.write_csv, "json": row_formats.write_json}[kind](file, schema, batches)
    file.flush()


def _is_of_a_file(error: Exception) -> bool:
    """Whether reading a part may have failed, and not the SQL be wrong."""
    of_sql = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.PermissionException)
    return not isinstance(error, (*of_sql, duckdb.ConversionException, duckdb.SyntaxException))


def _explained(error: Exception, sql: str) -> str:
    """DuckDB's words on one line, with the place in the SQL where it tells one."""
    text = str(error)
    try:
        found: dict[str, Any] = json.loads(text[text.index("{") :])
    except ValueError:
        return f"SQL: {one_line(error)}"
    message = " ".join(str(found.get("exception_message", text)).split())
    if "position" not in found:
        return f"SQL: {message}"
    before = sql.encode()[: int(found["position"])].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    rest = " ".join(sql[len(before) : len(before) + PLACE].split())
    return f"SQL: line {line} column {column}: {message}" + (f" (at: {rest})" if rest else "")
