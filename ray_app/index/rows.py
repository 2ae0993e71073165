"""The rows of an output's index: read, the newest of each image found, damaged parts quarantined.
Knows which row of an image counts; nothing of parts' files, see `partition`."""

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds

from ray_app.errors import OutputRefused, one_line
from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.index.schema import KEY
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute


@retry_if_compacted
def read_rows(
    output: Output,
    model_type: str,
    columns: Sequence[str] | dict[str, ds.Expression],
    only: ds.Expression | None = None,
) -> pa.Table:
    """Rows of a model's partition, oldest first, so that the last of a key is the one that counts.

    Rows of damaged parts are left out, and each such part is named on stderr once per process.

    Raises:
        Refused: a part that can't be opened, though it may be whole, or of a later version; the message names it.
    """
    expressions = columns if isinstance(columns, dict) else {name: ds.field(name) for name in columns}
    expressions = {**expressions, "created_at": ds.field("created_at")}
    partition = Partition.open(output, model_type)
    while True:
        partition.tell_damage()
        try:
            return partition.dataset().to_table(columns=expressions, filter=only).sort_by("created_at")
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            if not partition.find_damage():
                where = output.display_path(layout.index_folder(model_type))
                raise OutputRefused(f"{where}: can't be read: {one_line(error, 200)}") from error


def newest_time(output: Output, model_type: str) -> datetime.datetime:
    """When the newest row of a model's partition was made; long ago if there is none."""
    newest_or_null = pc.max(read_rows(output, model_type, ["created_at"])["created_at"]).as_py()
    return newest_or_null or datetime.datetime.fromtimestamp(0, datetime.UTC)


def find_newest(rows: pa.Table) -> np.ndarray:
    """The numbers of the newest rows, one per key in the order of the keys; of equally old rows the last.

    Args:
        rows: has the columns of `KEY`, and `created_at`.
    """
    keys = []
    for name in KEY:
        # NumPy sorts numbers much faster than texts
        key = pc.rank(rows[name], tiebreaker="dense") if name == "snapshot" else rows[name].fill_null(-1)
        keys.append(np.asarray(key))
    created_at = np.asarray(rows["created_at"].cast(pa.int64()))
    order = np.lexsort((created_at, *reversed(keys)))  # by key, and rows of the same key by age
    is_newest = np.ones(len(order), bool)
    if len(order):
        differs_from_next = [key[order[1:]] != key[order[:-1]] for key in keys]
        is_newest[:-1] = np.logical_or.reduce(differs_from_next)
    return order[is_newest]


def is_of_capture(rows: pa.Table, snapshot: str, step: int) -> np.ndarray:
    """Which rows are of this snapshot and step: bool, one per row."""
    return np.asarray(pc.and_(pc.equal(rows["snapshot"], snapshot), pc.equal(rows["step"], step)))


@retry_if_compacted
def read_recipes(output: Output, model_type: str) -> dict[str, dict[str, Any]]:
    """Every recipe of a model's partition in full, by fingerprint, from the parts' own metadata."""
    return Partition.open(output, model_type).recipes


@retry_if_compacted
def quarantine_damaged(output: Output, model_type: str) -> None:
    """Move parts that were found damaged to OUTPUT/.set_aside, so that no pattern of `index/` matches them."""
    for part in Partition.open(output, model_type).damaged:
        output.quarantine(part)
