"""The views `images`, `features`, `evaluation` and `runs` of an output, in a DuckDB that can read nothing else.
Knows how DuckDB is locked and which parts count; nothing of the queries."""

import contextlib
import datetime
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from actors import families
from ray_app.errors import OutputRefused, one_line
from ray_app.features import parts as feature_parts
from ray_app.features.parts import FeatureParts, encoders_of
from ray_app.index import runs, schema
from ray_app.index.partition import Partition, part_names
from ray_app.index.schema import KEY
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.output import Output

CHECKED_ROWS = 200_000
"""Up to this many rows, every page is verified before a query (0.1 s); beyond, only pages that a query reads."""

RUN_COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "run_id": (pa.string(), "ID of the run, as in its images' rows"),
    "state": (pa.string(), "running, complete, some failed, interrupted, failed; died: it ended without recording it"),
    "model_type": (pa.string(), families.listed()),
    "started_at": (pa.timestamp("s", tz="UTC"), "when it began"),
    "heartbeat_at": (pa.timestamp("s", tz="UTC"), "when its driver last wrote its record"),
    "ended_at": (pa.timestamp("s", tz="UTC"), "when it ended; null while it runs or if it died"),
    "host": (pa.string(), "where its driver ran"),
    "pid": (pa.int64(), "the driver's process id"),
    "images_written": (pa.int64(), "images that it generated; null until it ends"),
    "images_skipped": (pa.int64(), "requested images that existed already"),
    "images_failed": (pa.int64(), "images that failed"),
    "wall_seconds": (pa.float64(), "duration, including starting Ray and loading models"),
    "images_per_second": (pa.float64(), "images_written per second of wall_seconds"),
    "error": (pa.string(), "why it failed"),
    "command": (pa.string(), "its command line"),
    "options": (pa.string(), "JSON: every flag"),
    "recipe": (pa.string(), "JSON: everything that decides pixels, except prompt and seed"),
    "versions": (pa.string(), "JSON: versions of Python and packages"),
}
"""Every column of `runs`: type and meaning."""

_JSON = ("options", "recipe", "versions")


@contextlib.contextmanager
def connected(output: Output) -> Iterator[duckdb.DuckDBPyConnection]:
    """A locked in-memory DuckDB with all views; a partition is read when a query uses it.

    Raises:
        Refused: the output has neither an index nor features, or a part that may be whole can't be opened.
        FileNotFoundError: a part no longer exists, as after a compaction; call it again.
    """
    with tempfile.TemporaryDirectory(prefix="proxyqueue-") as scratch, duckdb.connect(":memory:") as connection:
        partitions = _partitions(output)
        try:
            _define(connection, output, partitions, scratch)
            yield connection
        except duckdb.Error as error:  # DuckDB reports a missing file in many ways: list the parts again
            for model_type, partition in partitions.items():
                if not set(partition.names).issubset(part_names(output, model_type)):
                    raise FileNotFoundError from error
            raise


def _define(
    connection: duckdb.DuckDBPyConnection, output: Output, partitions: dict[str, Partition], scratch: str
) -> None:
    selects = []
    for model_type, partition in partitions.items():
        # DuckDB does not read the files itself: it can't verify page checksums or read every kind of OUTPUT
        connection.register(f"parts_{model_type}", partition.dataset())
        selects.append(
            f"(SELECT *, '{model_type}' AS model FROM parts_{model_type} QUALIFY row_number() OVER"
            f" (PARTITION BY {', '.join(KEY)} ORDER BY created_at DESC) = 1)"
        )
    if not selects:  # features of other images only
        connection.register("no_images", schema.SCHEMA.append(pa.field("model", pa.string())).empty_table())
        selects.append("(FROM no_images)")
    select_features = _register_features(connection, output)
    connection.register("run_records", run_table(output))
    _register_evaluation(connection, output)
    _lock(connection, scratch)
    connection.execute(f"CREATE VIEW images AS {' UNION ALL BY NAME '.join(selects)}")
    connection.execute(f"CREATE VIEW features AS {select_features}")
    connection.execute("CREATE TABLE runs AS FROM run_records ORDER BY run_id")
    connection.unregister("run_records")
    connection.execute("SET lock_configuration = true")


def _register_evaluation(connection: duckdb.DuckDBPyConnection, output: Output) -> None:
    """The view `evaluation`, where `evaluate` has written its table; one that can't be read is named and left out."""
    folder, name = layout.EVALUATION_TABLE.rsplit("/", 1)
    if not output.list_names(folder, name):
        return
    path = output.path(layout.EVALUATION_TABLE)
    try:
        connection.register("evaluation", ds.dataset(path, filesystem=output.filesystem, format="parquet"))
    except (pa.ArrowException, OSError) as error:
        path = output.display_path(layout.EVALUATION_TABLE)
        LOG.warning(f"{path}: can't be read: {one_line(error, 200)}; no view of it")


def _register_features(connection: duckdb.DuckDBPyConnection, output: Output) -> str:
    """The SELECT of the view `features`: of each image or text one row, an ok one where one exists."""
    fields = pa.schema([(name, kind) for name, (kind, _) in feature_parts.COLUMNS.items()])
    connection.register("no_features", fields.empty_table())
    selects = ["(FROM no_features)"]
    for number, encoder in enumerate(encoders_of(output)):
        features = FeatureParts(output, encoder)
        features.tell_damage()
        if features.names:
            connection.register(f"features_{number}", features.dataset())
            key = ", ".join((*feature_parts.ITEM, *feature_parts.RECIPE))
            selects.append(
                f"(SELECT * REPLACE (vector::FLOAT[] AS vector) FROM features_{number} QUALIFY row_number() OVER"
                f" (PARTITION BY {key} ORDER BY status = '{feature_parts.OK}' DESC) = 1)"
            )
    return " UNION ALL BY NAME ".join(selects)


def find_damaged(output: Output) -> bool:
    """Read every part whole, after DuckDB failed to read one; whether this found damaged parts."""
    has_damage = [partition.find_damage() for partition in _readable(output).values()]  # all of them, not up to a first
    return any(has_damage)


def run_table(output: Output) -> pa.Table:
    """Every run's record as a row of `runs`."""
    rows = []
    for record in runs.read_all(output):
        flat = {**record, **(record.get("summary") or {})}
        flat["command"] = " ".join(map(str, record.get("command") or ()))
        flat |= {name: json.dumps(record.get(name), ensure_ascii=False) for name in _JSON}
        rows.append({name: _cast(flat.get(name), kind) for name, (kind, _) in RUN_COLUMNS.items()})
    return pa.Table.from_pylist(rows, pa.schema([(name, kind) for name, (kind, _) in RUN_COLUMNS.items()]))


def _partitions(output: Output) -> dict[str, Partition]:
    """Each model's partition; warns of damaged parts."""
    partitions = _readable(output)
    if not partitions and not encoders_of(output):
        raise OutputRefused(f"{output.display_path(layout.INDEX)}: no index; set --output_base_path")
    rows = 0
    for partition in partitions.values():
        rows += sum(footer.rows for footer in partition.footers.values())
    for partition in partitions.values():
        if rows <= CHECKED_ROWS:
            partition.find_damage()
        partition.tell_damage()
    return partitions


def _readable(output: Output) -> dict[str, Partition]:
    """Each model's partition, where it has parts."""
    opened = {model_type: Partition.open(output, model_type) for model_type in families.FAMILIES}
    return {model_type: partition for model_type, partition in opened.items() if partition.names or partition.damaged}


def _lock(connection: duckdb.DuckDBPyConnection, scratch: str) -> None:
    """Lock it: from now on it reads only registered tables and its own scratch folder, and loads no extension."""
    connection.execute("SET errors_as_json = true")
    connection.execute("SET enable_progress_bar = false")  # it would be printed between the rows
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET autoinstall_known_extensions = false")
    connection.execute("SET autoload_known_extensions = false")
    connection.execute("SET allow_community_extensions = false")
    connection.execute("SET allow_persistent_secrets = false")
    connection.execute(f"SET temp_directory = {_quoted(scratch)}")
    connection.execute("SET enable_external_access = false")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _cast(value: Any, kind: pa.DataType) -> Any:
    """A record's value as the column's type; None if somebody edited the record and it is of another type."""
    try:
        if value is not None and pa.types.is_timestamp(kind):
            value = datetime.datetime.fromisoformat(value)
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowException, TypeError, ValueError):
        return None
