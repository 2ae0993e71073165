"""What was requested of an output: queries with their numbers of prompts, and captures; from records or annotations.
Knows no index and no files: which of the images exist is decided in `existing`."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app.index.schema import SLOT_KEY

Captures = Iterable[tuple[str, int]]


@dataclasses.dataclass
class RequestedImages:
    """The first `prompts` prompts of each query, `images` per prompt, at these captures (snapshot, step).

    The three arrays have one entry per query, by ascending query id.
    """

    query_ids: np.ndarray
    prompts: np.ndarray
    images: np.ndarray
    captures: set[tuple[str, int]]

    @property
    def slots(self) -> int:
        """How many images are requested of each capture."""
        return int((self.prompts * self.images).sum())

    def includes(self, rows: pa.Table) -> np.ndarray:
        """Which rows are of a requested slot, whatever their capture: bool, one per row."""
        if not len(self.query_ids):
            return np.zeros(rows.num_rows, bool)
        query, prompt, image = (np.asarray(rows[name]) for name in SLOT_KEY)
        position = np.minimum(np.searchsorted(self.query_ids, query), len(self.query_ids) - 1)
        is_requested_query = self.query_ids[position] == query
        return is_requested_query & (prompt < self.prompts[position]) & (image < self.images[position])


def record(slots: pa.Table, captures: Captures) -> dict[str, Any]:
    """The short form for run records: ranges [first query, last query, prompts, images per prompt] of equal queries."""
    requested = of_slots(slots, captures)
    ranges: list[list[int]] = []
    columns = (requested.query_ids.tolist(), requested.prompts.tolist(), requested.images.tolist())
    for query, *shape in zip(*columns, strict=True):
        if ranges and ranges[-1][1] == query - 1 and ranges[-1][2:] == shape:
            ranges[-1][1] = query
        else:
            ranges.append([query, query, *shape])
    return {"queries": ranges, "captures": sorted(map(list, requested.captures))}


def of_slots(slots: pa.Table, captures: Captures) -> RequestedImages:
    """What a table of `circo.slots` requests."""
    queries = slots.group_by("query_id").aggregate([("prompt_index", "max"), ("image_index", "max")])
    queries = queries.sort_by("query_id")
    names = ("query_id", "prompt_index_max", "image_index_max")
    query_ids, last_prompts, last_images = (np.asarray(queries[name]).astype(np.int64) for name in names)
    return RequestedImages(query_ids, last_prompts + 1, last_images + 1, set(captures))


def of_records(records: Sequence[dict[str, Any]]) -> RequestedImages:
    """What these runs requested together: the most prompts and images of each query, and every capture.

    Records without `asked`, or with one that can't be understood, request nothing.
    """
    pieces, captures = [np.zeros((0, 3), np.int64)], set()
    for record in records:
        requested = record.get("asked")
        if not isinstance(requested, dict):
            continue
        try:
            pieces_of_record = [_expand(*map(int, entry)) for entry in requested["queries"]]
            captures |= {(str(snapshot), int(step)) for snapshot, step in requested["captures"]}
        except (KeyError, TypeError, ValueError):
            continue
        pieces += pieces_of_record
    rows = np.concatenate(pieces)
    query_ids, query_of_row = np.unique(rows[:, 0], return_inverse=True)
    prompts, images = np.zeros((2, len(query_ids)), np.int64)
    np.maximum.at(prompts, query_of_row, rows[:, 1])
    np.maximum.at(images, query_of_row, rows[:, 2])
    return RequestedImages(query_ids, prompts, images, captures)


def _expand(first: int, last: int, prompts: int, images: int) -> np.ndarray:
    """One row [query id, prompts, images] per query of a range."""
    query_ids = np.arange(first, last + 1)
    return np.stack([query_ids, np.full_like(query_ids, prompts), np.full_like(query_ids, images)], axis=1)
