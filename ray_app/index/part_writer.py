"""PartWriter: rows that arrive during a run become immutable Parquet parts, every few seconds.
Knows when a part is due and how it is written; nothing of columns."""

import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.errors import OutputRefused, write_failure
from ray_app.output.output import Writer

COMMIT_SECONDS = 5.0
COMMIT_ROWS = 5_000
Own = TypeVar("Own", bound="PartWriter")


def to_parquet(table: pa.Table) -> bytes:
    """A part's bytes. Pages carry checksums: a flipped bit is found, where zstd alone would give other values."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


class PartWriter:
    """Collects tables and commits them as parts, each whole or not at all.

    As a context manager it commits on every exit path. A last part that can't be written does not hide an error that
    is already being raised; rerunning the same command makes its rows again.

    Args:
        writer: where.
        part_name: the path of the part with a number, from 0.
    """

    def __init__(self, writer: Writer, part_name: Callable[[int], str]):
        self.writer, self._part_name = writer, part_name
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._sequence = 0
        self._oldest = 0.0

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.commit()
        except OutputRefused:
            if error is None:
                raise

    def add(self, rows: pa.Table) -> None:
        """Take rows into the next part; all tables of a part have one schema."""
        if not rows.num_rows:
            return
        if not self._tables:
            self._oldest = time.monotonic()
        self._tables.append(rows)
        self._rows += rows.num_rows

    def commit_if_due(self) -> None:
        """Commit a part if the oldest row waits for `COMMIT_SECONDS`, or `COMMIT_ROWS` rows wait."""
        if self._rows >= COMMIT_ROWS or (self._rows and time.monotonic() - self._oldest >= COMMIT_SECONDS):
            self.commit()

    def commit(self) -> None:
        """Write what is waiting as one part; nothing if nothing waits.

        Raises:
            Refused: it can't be written; the rows are kept for another try.
        """
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        try:
            self.writer.write(self._part_name(self._sequence), to_parquet(table))
        except OSError as error:
            raise write_failure(error) from error
        self._sequence += 1
        self._tables, self._rows = [], 0
