"""The index: rows of a run become immutable parts, and rows are read back.
Knows which row of an image counts; nothing of how images are drawn."""

import dataclasses
import datetime
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors.recipe import Recipe
from ray_app import layout
from ray_app.errors import OutputRefused, one_line, write_failure
from ray_app.partition import Partition, retry_if_compacted
from ray_app.schema import KEY, SCHEMA, with_recipes
from ray_app.storage import Output, Writer

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

COMMIT_SECONDS = 5.0
COMMIT_ROWS = 5_000
TICK = datetime.timedelta(microseconds=1)
"""The least by which times of the index differ."""


def to_parquet(table: pa.Table) -> bytes:
    """A part's bytes. Pages carry checksums: a flipped bit is found, where zstd alone would give other values."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


class IndexWriter:
    """Collects the rows of a run and commits them as parts, each whole or not at all.

    As a context manager it commits on every way out. An error that is on its way out already is the one to tell: a
    last part that can't be written then doesn't hide it, and its images are drawn again by the same command.

    Args:
        writer: where; its run id names the parts.
        recipe: what the run's images are drawn by; in full in each part's metadata, so that rows can be redrawn.
    """

    def __init__(self, writer: Writer, recipe: Recipe):
        self.writer, self.model_type = writer, recipe.model_type
        names = ("num_inference_steps", "model_path", "model_revision", "guidance_scale", "scheduler", "dtype")
        self.constants = {name: getattr(recipe, name) for name in names} | {
            "format": recipe.image_format,
            "recipe": recipe.fingerprint(),
            "run_id": writer.run_id,
        }
        self.schema = with_recipes({recipe.fingerprint(): dataclasses.asdict(recipe)})
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._sequence = 0
        self._oldest = 0.0
        self._newest: datetime.datetime | None = None

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.commit()
        except OutputRefused:
            if error is None:
                raise

    def append(self, rows: pa.Table) -> None:
        """Take rows into the next part. Columns that are neither here nor constant are null."""
        if not rows.num_rows:
            return
        # a later row counts, whatever the clock says: it may have been set back, or be behind another host's
        newest = self._newest or newest_time(self.writer.output, self.model_type)
        now = self._newest = max(datetime.datetime.now(datetime.UTC), newest + TICK)
        columns = []
        for field in SCHEMA:
            if field.name in rows.column_names:
                columns.append(rows[field.name].cast(field.type))
            else:
                value = now if field.name == "created_at" else self.constants.get(field.name)
                columns.append(pa.repeat(pa.scalar(value, field.type), rows.num_rows))
        if not self._tables:
            self._oldest = time.monotonic()
        self._tables.append(pa.table(columns, schema=self.schema))
        self._rows += rows.num_rows

    def commit_if_due(self) -> None:
        """Commit a part if the oldest row waits for `COMMIT_SECONDS`, or `COMMIT_ROWS` rows wait."""
        if self._rows >= COMMIT_ROWS or (self._rows and time.monotonic() - self._oldest >= COMMIT_SECONDS):
            self.commit()

    def commit(self) -> None:
        """Write what is waiting as one part; nothing if nothing waits.

        Raises:
            Refused: it can't be written; the rows stay in hand for another try.
        """
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        part = layout.index_part(self.model_type, self.writer.run_id, self._sequence)
        try:
            self.writer.write(part, to_parquet(table))
        except OSError as error:
            raise write_failure(error) from error
        self._sequence += 1
        self._tables, self._rows = [], 0


@retry_if_compacted
def read(
    output: Output,
    model_type: str,
    columns: Sequence[str] | dict[str, ds.Expression],
    only: ds.Expression | None = None,
) -> pa.Table:
    """Rows of a model's partition, oldest first, so that the last of a key is the one that counts.

    Rows of damaged parts are left out, and each such part is named on stderr, once a process.

    Raises:
        Refused: a part that can't be opened, though it may be whole, or of a later version; the message names it.
    """
    wanted = columns if isinstance(columns, dict) else {name: ds.field(name) for name in columns}
    wanted = {**wanted, "created_at": ds.field("created_at")}
    partition = Partition.open(output, model_type)
    while True:
        partition.tell_damage()
        try:
            return partition.dataset().to_table(columns=wanted, filter=only).sort_by("created_at")
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            if not partition.find_damage():
                where = output.at(layout.index_folder(model_type))
                raise OutputRefused(f"{where}: can't be read: {one_line(error, 200)}") from error


def newest_time(output: Output, model_type: str) -> datetime.datetime:
    """When the newest row of a model's partition was made; long ago if there is none."""
    found = pc.max(read(output, model_type, ["created_at"])["created_at"]).as_py()
    return found or datetime.datetime.fromtimestamp(0, datetime.UTC)


def newest(rows: pa.Table) -> np.ndarray:
    """Where in a table the newest row of each key stands, in the order of the keys; of equally old ones the last.

    Args:
        rows: has the columns of `KEY`, and `created_at`.
    """
    keys = [
        np.asarray(pc.rank(rows[name], tiebreaker="dense") if name == "snapshot" else rows[name].fill_null(-1))
        for name in KEY
    ]
    order = np.lexsort((np.asarray(rows["created_at"].cast(pa.int64())), *reversed(keys)))
    last = np.ones(len(order), bool)
    if len(order):
        last[:-1] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    return order[last]


@retry_if_compacted
def recipes(output: Output, model_type: str) -> dict[str, dict[str, Any]]:
    """Every recipe of a model's partition in full, by fingerprint, from the parts' own metadata."""
    return Partition.open(output, model_type).recipes


@retry_if_compacted
def set_aside_damaged(output: Output, model_type: str) -> None:
    """Move the parts that reading found damaged to OUTPUT/.set_aside, so that no pattern of `index/` finds them."""
    for part in Partition.open(output, model_type).damaged:
        output.set_aside(part)
