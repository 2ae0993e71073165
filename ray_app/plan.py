"""The plan: slots minus what exists gives the denoises still to do, each once, with the captures still missing.
Knows tables only; no files, no Ray."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.recipe import Capture
from ray_app.schema import SLOT, names_from

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

SLOT_FIELDS = (*names_from(SLOT), "file")
"""What the writer has to know of a slot."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run has to do.

    `denoises` has one row a denoise: denoise_id, prompt, seed, `captures` (which of `captures` it is run for) and
    `slots`, the slots it serves, each with the captures that slot misses. Rows with equal captures stand together.
    """

    captures: list[Capture]
    slots: int
    different_denoises: int
    images_there: int
    images_given_up: int  # failed in an earlier run, and not to be tried again
    denoises: pa.Table
    images_to_draw: int
    slots_to_do: int

    @property
    def images_wanted(self) -> int:
        """Images asked for, those that are there included."""
        return self.slots * len(self.captures)

    @property
    def duplicates_saved(self) -> int:
        """Denoises that need not be run because another slot asks for the very same."""
        return self.slots_to_do - self.denoises.num_rows

    def draws(self, capture: int) -> bool:
        """Whether any image of this capture (its number) is to be drawn."""
        return bool(pc.any(pc.equal(pc.list_flatten(self.denoises["captures"]), capture)).as_py())

    def query_ids(self) -> list[int]:
        """The queries that any image is drawn for."""
        slots = pc.list_flatten(self.denoises["slots"])
        return pc.struct_field(slots, "query_id").unique().to_pylist()

    def last_steps(self) -> np.ndarray:
        """For each denoise the step after which it stops."""
        steps = np.array([capture.step for capture in self.captures])
        wanted = self.denoises["captures"].combine_chunks()
        if not len(wanted):
            return np.zeros(0, int)
        starts = np.asarray(wanted.offsets)[:-1] - wanted.offsets[0].as_py()
        return np.maximum.reduceat(steps[np.asarray(wanted.flatten())], starts)

    def steps_to_run(self, separate: bool = False) -> int:
        """Denoising steps of all denoises together, padding not counted; `separate`: a run for each capture."""
        if not separate:
            return int(self.last_steps().sum())
        steps = np.array([capture.step for capture in self.captures], int)
        return int(steps[np.asarray(pc.list_flatten(self.denoises["captures"]))].sum())

    def batches(self, batch_size: int) -> Iterator[pa.Table]:
        """The denoises in batches, one each for a task of the cluster."""
        for start in range(0, self.denoises.num_rows, batch_size):
            yield self.denoises.slice(start, batch_size)


def make(slots: pa.Table, there: np.ndarray, captures: Sequence[Capture], given_up: np.ndarray | None = None) -> Plan:
    """Plan what is missing.

    Args:
        slots: the table of `circo.slots`.
        there: bool, (slots, captures): which images exist.
        captures: the images wanted of each slot.
        given_up: bool, (slots, captures): which are to be left alone though they are missing.
    """
    given_up = np.zeros_like(there) if given_up is None else given_up
    missing = ~there & ~given_up
    to_do = np.nonzero(missing.any(1))[0]
    work = slots.take(pa.array(to_do))
    code, first = _codes(work["denoise_id"])
    wanted = np.zeros((len(first), len(captures)), bool)
    np.logical_or.at(wanted, code, missing[to_do])
    rank = _ranks(wanted, captures)
    # slots in the order of the plan: denoises with equal captures together, then as they stand in the file
    slot_order = np.lexsort((code, rank[code]))
    denoise_order = np.lexsort((np.arange(len(first)), rank))
    served = work.take(pa.array(slot_order)).select(SLOT_FIELDS)
    slot_structs = pa.StructArray.from_arrays(
        [*(column.combine_chunks() for column in served.columns), _index_lists(missing[to_do][slot_order])],
        names=[*SLOT_FIELDS, "captures"],
    )
    counts = np.bincount(code, minlength=len(first))[denoise_order]
    chosen = work.take(pa.array(first[denoise_order]))
    denoises = pa.table(
        {
            "denoise_id": chosen["denoise_id"],
            "prompt": chosen["prompt"],
            "seed": chosen["seed"],
            "captures": _index_lists(wanted[denoise_order]),
            "slots": pa.ListArray.from_arrays(_offsets(counts), slot_structs),
        }
    )
    return Plan(
        captures=list(captures),
        slots=slots.num_rows,
        different_denoises=pc.count_distinct(slots["denoise_id"]).as_py(),
        images_there=int(there.sum()),
        images_given_up=int(given_up.sum()),
        denoises=denoises,
        images_to_draw=int(missing.sum()),
        slots_to_do=len(to_do),
    )


def _codes(ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Number the different ids by first appearance: each row's number, and each number's first row."""
    code = np.asarray(ids.combine_chunks().dictionary_encode().indices)
    _, first = np.unique(code, return_index=True)
    return code, first


def _ranks(wanted: np.ndarray, captures: Sequence[Capture]) -> np.ndarray:
    """Number each row's set of captures so that equal sets are equal; those that run the most steps come first."""
    steps = np.array([capture.step for capture in captures])
    sets, number = np.unique(wanted, axis=0, return_inverse=True)
    last_steps = np.where(sets, steps, 0).max(1, initial=0)
    return np.argsort(np.argsort(-last_steps, kind="stable"))[number.reshape(-1)]


def _index_lists(mask: np.ndarray) -> pa.ListArray:
    """Each row's true columns as a list of their numbers."""
    return pa.ListArray.from_arrays(_offsets(mask.sum(1)), pa.array(np.nonzero(mask)[1], pa.int32()))


def _offsets(counts: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
