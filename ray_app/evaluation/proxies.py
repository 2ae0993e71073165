"""The proxies of each query at each step, as vectors: what of an output's index has features.
Knows the index and features; nothing of texts, galleries or scores."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from actors.families import FAMILIES
from ray_app.evaluation.features import Features
from ray_app.index.rows import find_newest, read_rows
from ray_app.index.schema import KEY
from ray_app.output.output import Output

COLUMNS = (*KEY, "sha256", "status", "path")


@dataclasses.dataclass(frozen=True)
class Slots:
    """The slots of one model and kind of snapshot that have a vector at every step, by query, prompt and image."""

    model: str
    snapshot: str
    steps: list[int]
    query_id: np.ndarray
    """int64 (slots,)"""
    image_index: np.ndarray
    """int64 (slots,)"""
    rows: np.ndarray
    """Rows of the features: int64 (slots, steps)."""
    paths: np.ndarray
    """Files of OUTPUT: object (slots, steps)."""
    incomplete: int
    """Slots left out, since some step has no image or no vector."""

    def queries(self, image_index: int) -> set[int]:
        """The queries that have such an image."""
        return set(self.query_id[self.image_index == image_index].tolist())

    def proxies(self, features: Features, step: int, image_index: int, query_ids: Sequence[int]) -> np.ndarray:
        """The mean of the unit vectors of each query's images: float32 (queries, D).

        Args:
            image_index: which image of each prompt.
            query_ids: queries that have such images.
        """
        is_used = (self.image_index == image_index) & np.isin(self.query_id, query_ids)
        owners = self.query_id[is_used]
        order = np.argsort(owners, kind="stable")
        vectors = features.unit_vectors(self.rows[is_used, self.steps.index(step)][order])
        ids, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
        means = np.add.reduceat(vectors, starts, axis=0) / counts[:, None].astype(np.float32)
        return means[np.searchsorted(ids, query_ids)]

    def first_path(self, query_id: int, step: int, image_index: int) -> str:
        """The file of a query's first image at a step."""
        is_its = (self.image_index == image_index) & (self.query_id == query_id)
        return str(self.paths[np.flatnonzero(is_its)[0], self.steps.index(step)])


def read_index(output: Output, model_type: str) -> pa.Table:
    """The newest row of each image that exists, by the order of their keys."""
    rows = read_rows(output, model_type, COLUMNS)
    rows = rows.take(pa.array(find_newest(rows)))
    return rows.filter(pa.array(np.asarray(rows["status"].to_numpy()) == "ok"))


def own_images(output: Output) -> set[str]:
    """sha256 of every image that the index has a row of, superseded ones too, of all families."""
    tables = [read_rows(output, model_type, ["sha256"]) for model_type in FAMILIES]
    return {sha256 for table in tables for sha256 in table["sha256"].to_pylist() if sha256}


def group(
    rows: pa.Table, model_type: str, features: Features, steps: Sequence[int], snapshot: str | None, num_prompts: int
) -> list[Slots]:
    """The slots of each kind of snapshot, xt before x0; only of steps that some image is of.

    Args:
        rows: of `read_index`.
        steps, snapshot: the captures to use; empty and None for all.
        num_prompts: prompts of each query whose images are used, the first ones.
    """
    groups = []
    for kind in ("xt", "x0"):
        is_used = np.asarray(rows["snapshot"].to_numpy()) == kind
        is_used &= np.asarray(rows["prompt_index"]) < num_prompts
        if steps:
            is_used &= np.isin(np.asarray(rows["step"]), steps)
        if snapshot in (None, kind) and is_used.any():
            groups.append(_group(rows.filter(pa.array(is_used)), model_type, kind, features))
    return groups


def _group(rows: pa.Table, model_type: str, snapshot: str, features: Features) -> Slots:
    key = np.stack([np.asarray(rows[name]).astype(np.int64) for name in ("query_id", "prompt_index", "image_index")], 1)
    slots, slot_of_row = np.unique(key, axis=0, return_inverse=True)
    steps, step_of_row = np.unique(np.asarray(rows["step"]), return_inverse=True)
    feature_rows = np.full((len(slots), len(steps)), -1, np.int64)
    paths = np.full(feature_rows.shape, None, object)
    vectors_of_rows = [features.of_image.get(sha256, -1) for sha256 in rows["sha256"].to_pylist()]
    feature_rows[slot_of_row.ravel(), step_of_row.ravel()] = vectors_of_rows
    paths[slot_of_row.ravel(), step_of_row.ravel()] = rows["path"].to_pylist()
    has_all = (feature_rows >= 0).all(axis=1)
    slots = slots[has_all]
    return Slots(
        model_type,
        snapshot,
        steps.tolist(),
        slots[:, 0],
        slots[:, 2],
        feature_rows[has_all],
        paths[has_all],
        int((~has_all).sum()),
    )
