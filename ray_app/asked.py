"""What was asked of an output: queries with their numbers of prompts, and captures; from runs' records or annotations.
Knows no index and no files: what is there of it is found elsewhere."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.schema import SLOT_KEY

Captures = Iterable[tuple[str, int]]


@dataclasses.dataclass
class RequestedImages:
    """Of each query its first `prompts` prompts, `images` of each, at these captures (snapshot, step).

    The three arrays go together, by ascending query id.
    """

    query_ids: np.ndarray
    prompts: np.ndarray
    images: np.ndarray
    captures: set[tuple[str, int]]

    @property
    def slots(self) -> int:
        """How many images there are to be of each capture."""
        return int((self.prompts * self.images).sum())

    def includes(self, rows: pa.Table) -> np.ndarray:
        """Which rows are of a slot that was asked for, whatever their capture: bool, one a row."""
        if not len(self.query_ids):
            return np.zeros(rows.num_rows, bool)
        query, prompt, image = (np.asarray(rows[name]) for name in SLOT_KEY)
        place = np.minimum(np.searchsorted(self.query_ids, query), len(self.query_ids) - 1)
        return (self.query_ids[place] == query) & (prompt < self.prompts[place]) & (image < self.images[place])


def record(slots: pa.Table, captures: Captures) -> dict[str, Any]:
    """For a run's record, short: ranges [first query, last, prompts, images of each] of consecutive alike queries."""
    asked = of_slots(slots, captures)
    ranges: list[list[int]] = []
    for query, *shape in zip(*(a.tolist() for a in (asked.query_ids, asked.prompts, asked.images)), strict=True):
        if ranges and ranges[-1][1] == query - 1 and ranges[-1][2:] == shape:
            ranges[-1][1] = query
        else:
            ranges.append([query, query, *shape])
    return {"queries": ranges, "captures": sorted(map(list, asked.captures))}


def of_slots(slots: pa.Table, captures: Captures) -> RequestedImages:
    """What a table of `circo.slots` asks for."""
    counted = (
        slots.group_by("query_id").aggregate([("prompt_index", "max"), ("image_index", "max")]).sort_by("query_id")
    )
    query_ids, prompts, images = (
        np.asarray(counted[name]).astype(np.int64) for name in ("query_id", "prompt_index_max", "image_index_max")
    )
    return RequestedImages(query_ids, prompts + 1, images + 1, set(captures))


def of_records(records: Sequence[dict[str, Any]]) -> RequestedImages:
    """What these runs were asked for together: of each query the most prompts and images, and every capture.

    Records that don't say, or not in our words, ask for nothing.
    """
    ranges, captures = [np.zeros((0, 3), np.int64)], set()
    for found in (record["asked"] for record in records if isinstance(record.get("asked"), dict)):
        try:
            mine = [_expand(*map(int, entry)) for entry in found["queries"]]
            captures |= {(str(snapshot), int(step)) for snapshot, step in found["captures"]}
        except (KeyError, TypeError, ValueError):
            continue
        ranges += mine
    rows = np.concatenate(ranges)
    query_ids, place = np.unique(rows[:, 0], return_inverse=True)
    most = np.zeros((2, len(query_ids)), np.int64)
    np.maximum.at(most[0], place, rows[:, 1])
    np.maximum.at(most[1], place, rows[:, 2])
    return RequestedImages(query_ids, most[0], most[1], captures)


def _expand(first: int, last: int, prompts: int, images: int) -> np.ndarray:
    query_ids = np.arange(first, last + 1)
    return np.stack([query_ids, np.full_like(query_ids, prompts), np.full_like(query_ids, images)], axis=1)
