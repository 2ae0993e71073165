"""The slots of an output, each with its images by snapshot and step, as galleries and exports read them.
Knows the index and which files exist; nothing of pages or formats."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.errors import OutputRefused
from ray_app.index import existing
from ray_app.index.rows import find_newest, read_rows
from ray_app.index.schema import KEY
from ray_app.output import layout
from ray_app.output.output import Output

OK, FAILED, MISSING = "ok", "failed", "missing"
"""An image exists; generating it failed; or its file does not exist or has another size than its row says."""

_COLUMNS = (*KEY, "reference_img_id", "k", "status", "bytes", "path", "prompt", "seed", "denoise_id",
            "error_type", "error_message", "width", "height", "created_at")  # fmt: skip
_OF_SLOT = ("query_id", "reference_img_id", "prompt_index", "image_index", "k", "prompt", "seed", "denoise_id")

Capture = tuple[str, int]
"""Snapshot and step."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A slot: what it was generated from, and the row of each capture that the index has, `status` as above."""

    model: str
    slot: dict[str, Any]
    images: dict[Capture, dict[str, Any]]


class Trajectories:
    """All slots of an output, read query by query.

    Args:
        model_types: the families to read.
        steps, snapshot: the captures to read; all of them by default.

    Raises:
        Refused: the index has no such image.
    """

    def __init__(
        self,
        output: Output,
        model_types: Sequence[str],
        steps: Sequence[int] = (),
        snapshot: str | None = None,
    ):
        self._tables: dict[str, pa.Table] = {}
        captures: set[Capture] = set()
        for model_type in model_types:
            rows = read_rows(output, model_type, _COLUMNS)
            rows = rows.take(pa.array(find_newest(rows)))
            is_selected = np.ones(rows.num_rows, bool)
            if steps:
                is_selected &= np.isin(np.asarray(rows["step"]), steps)
            if snapshot is not None:
                is_selected &= np.asarray(rows["snapshot"].to_numpy()) == snapshot
            rows = rows.filter(pa.array(is_selected))
            if not rows.num_rows:
                continue
            has_file = existing.mask_rows_with_files(output, model_type, rows)
            self._tables[model_type] = _with_status(rows, has_file)
            pairs = rows.group_by(["snapshot", "step"]).aggregate([]).to_pylist()
            captures |= {(pair["snapshot"], pair["step"]) for pair in pairs}
        if not self._tables:
            what = " or ".join(model_types)
            if steps:
                what += f" at --steps {' '.join(map(str, steps))}"
            raise OutputRefused(f"{output.display_path(layout.INDEX)}: has no image of {what}; set --output_base_path")
        self.captures = sorted(captures, key=lambda capture: (capture[0] != "xt", capture[1]))
        """(snapshot, step) of every image, xt before x0."""
        # sorted by key: a query's rows are adjacent
        self._ids = {model_type: np.asarray(table["query_id"]) for model_type, table in self._tables.items()}
        self.query_ids: list[int] = np.unique(np.concatenate(list(self._ids.values()))).tolist()
        self.models = list(self._tables)

    def of(self, query_ids: Sequence[int]) -> Iterator[Trajectory]:
        """The slots of these queries in the order of the ids; those of one query by prompt and image, then by model."""
        for query_id in query_ids:
            slots: list[Trajectory] = []
            for model_type in self.models:
                slots += self._of_model(model_type, query_id)
            yield from sorted(slots, key=lambda one: (one.slot["prompt_index"], one.slot["image_index"]))

    def rows(self, model_type: str) -> pa.Table:
        """A model's rows, one per image, in the order of their keys."""
        return self._tables[model_type]

    def _of_model(self, model_type: str, query_id: int) -> Iterator[Trajectory]:
        table = self._tables[model_type]
        first, last = np.searchsorted(self._ids[model_type], [query_id, query_id + 1])
        rows = table.slice(first, last - first).to_pylist()
        for _, group in itertools.groupby(rows, key=lambda row: (row["prompt_index"], row["image_index"])):
            rows_of_slot = list(group)
            newest = max(rows_of_slot, key=lambda row: row["created_at"])
            images = {(row["snapshot"], row["step"]): row for row in rows_of_slot}
            yield Trajectory(model_type, {name: newest[name] for name in _OF_SLOT}, images)


def _with_status(rows: pa.Table, has_file: np.ndarray) -> pa.Table:
    """Rows with status "missing" instead of "ok" where the file does not exist."""
    rows = rows.combine_chunks()  # slices of one chunk cost nothing
    status = np.asarray(rows["status"].to_numpy(), dtype=object)
    status[(status == OK) & ~has_file] = MISSING
    return rows.set_column(rows.schema.get_field_index("status"), "status", pa.array(status, pa.string()))
