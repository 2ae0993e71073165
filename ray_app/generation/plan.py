"""The plan: slots minus what exists gives the denoises still to do, each once, with the captures still missing.
Knows tables only; no files, no Ray."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.recipe import Capture
from ray_app.index.schema import SLOT, names_from

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

SLOT_FIELDS = (*names_from(SLOT), "file")
"""What the writer has to know about a slot."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run has to do.

    `denoises` has one row per denoise: denoise_id, prompt, seed, `captures` (indices into the plan's captures) and
    `slots`, the slots it serves, each with the captures that slot misses. Rows with equal captures are adjacent.
    """

    captures: list[Capture]
    slots: int
    unique_denoises: int
    images_existing: int
    images_given_up: int  # failed in an earlier run, and not to be tried again
    denoises: pa.Table
    images_to_generate: int
    slots_to_do: int

    @property
    def images_requested(self) -> int:
        """Images requested, including existing ones."""
        return self.slots * len(self.captures)

    @property
    def duplicates_saved(self) -> int:
        """Denoises that need not run because another slot requests exactly the same."""
        return self.slots_to_do - self.denoises.num_rows

    def has_missing_images(self, capture_index: int) -> bool:
        """Whether any image of this capture is to be generated; `capture_index` is its place in `captures`."""
        missing_captures = pc.list_flatten(self.denoises["captures"])
        return bool(pc.any(pc.equal(missing_captures, capture_index)).as_py())

    def query_ids(self) -> list[int]:
        """The queries that have a missing image."""
        slots = pc.list_flatten(self.denoises["slots"])
        return pc.struct_field(slots, "query_id").unique().to_pylist()

    def last_steps(self) -> np.ndarray:
        """For each denoise the step after which it stops."""
        steps = np.array([capture.step for capture in self.captures])
        captures_of_denoise = self.denoises["captures"].combine_chunks()
        if not len(captures_of_denoise):
            return np.zeros(0, int)
        # a slice of a list array keeps the offsets of the whole
        starts = np.asarray(captures_of_denoise.offsets)[:-1] - captures_of_denoise.offsets[0].as_py()
        step_of_capture = steps[np.asarray(captures_of_denoise.flatten())]
        return np.maximum.reduceat(step_of_capture, starts)

    def steps_to_run(self, separate: bool = False) -> int:
        """Denoising steps of all denoises together, padding not counted; `separate`: a run for each capture."""
        if not separate:
            return int(self.last_steps().sum())
        steps = np.array([capture.step for capture in self.captures], int)
        captures = np.asarray(pc.list_flatten(self.denoises["captures"]))
        return int(steps[captures].sum())

    def batches(self, batch_size: int) -> Iterator[pa.Table]:
        """The denoises in batches, one per task of the cluster."""
        for start in range(0, self.denoises.num_rows, batch_size):
            yield self.denoises.slice(start, batch_size)


def make_plan(
    slots: pa.Table, exists: np.ndarray, captures: Sequence[Capture], given_up: np.ndarray | None = None
) -> Plan:
    """Plan what is missing.

    Args:
        slots: the table of `circo.slots`.
        exists: bool, (slots, captures): which images exist.
        captures: the images requested of each slot.
        given_up: bool, (slots, captures): which are not to be generated though they are missing.
    """
    given_up = np.zeros_like(exists) if given_up is None else given_up
    missing = ~exists & ~given_up
    (slots_to_do,) = np.nonzero(missing.any(1))
    table = slots.take(pa.array(slots_to_do))
    missing_of_slot = missing[slots_to_do]
    denoise, first_slot = _number_denoises(table["denoise_id"])
    # a denoise runs for every capture that any of its slots misses
    missing_of_denoise = np.zeros((len(first_slot), len(captures)), bool)
    np.logical_or.at(missing_of_denoise, denoise, missing_of_slot)
    rank = _order_by_last_step(missing_of_denoise, captures)
    # denoises with equal captures together, and otherwise in the order of the annotations; slots in the same order
    denoise_order = np.lexsort((np.arange(len(first_slot)), rank))
    slot_order = np.lexsort((denoise, rank[denoise]))
    served = table.take(pa.array(slot_order)).select(SLOT_FIELDS)
    columns = [column.combine_chunks() for column in served.columns]
    slot_structs = pa.StructArray.from_arrays(
        [*columns, _index_lists(missing_of_slot[slot_order])], names=[*SLOT_FIELDS, "captures"]
    )
    slots_per_denoise = np.bincount(denoise, minlength=len(first_slot))[denoise_order]
    first = table.take(pa.array(first_slot[denoise_order]))
    denoises = pa.table(
        {
            "denoise_id": first["denoise_id"],
            "prompt": first["prompt"],
            "seed": first["seed"],
            "captures": _index_lists(missing_of_denoise[denoise_order]),
            "slots": pa.ListArray.from_arrays(_offsets(slots_per_denoise), slot_structs),
        }
    )
    return Plan(
        captures=list(captures),
        slots=slots.num_rows,
        unique_denoises=pc.count_distinct(slots["denoise_id"]).as_py(),
        images_existing=int(exists.sum()),
        images_given_up=int(given_up.sum()),
        denoises=denoises,
        images_to_generate=int(missing.sum()),
        slots_to_do=len(slots_to_do),
    )


def _number_denoises(ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Number the unique ids by first appearance: each row's number, and each number's first row."""
    number = np.asarray(ids.combine_chunks().dictionary_encode().indices)
    _, first_row = np.unique(number, return_index=True)
    return number, first_row


def _order_by_last_step(missing: np.ndarray, captures: Sequence[Capture]) -> np.ndarray:
    """A number for each row's set of captures: the same for equal sets, and lower for those that run more steps."""
    steps = np.array([capture.step for capture in captures])
    sets, set_of_row = np.unique(missing, axis=0, return_inverse=True)
    last_steps = np.where(sets, steps, 0).max(1, initial=0)
    order = np.argsort(-last_steps, kind="stable")
    rank_of_set = np.argsort(order)
    return rank_of_set[set_of_row.reshape(-1)]


def _index_lists(mask: np.ndarray) -> pa.ListArray:
    """Each row's true columns as a list of their numbers."""
    return pa.ListArray.from_arrays(_offsets(mask.sum(1)), pa.array(np.nonzero(mask)[1], pa.int32()))


def _offsets(counts: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
