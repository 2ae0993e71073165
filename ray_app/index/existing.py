"""Which requested images exist, decided by the index and the files, and whether they are the ones requested.
Knows the index's columns and the tree; nothing of what is generated next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.recipe import Capture
from ray_app.errors import OutputRefused
from ray_app.index.rows import is_of_capture, read_rows
from ray_app.index.schema import KEY, SLOT_KEY
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

_SHARED = f"/{layout.COMBINED}_query"

_NO_SIZE = -2
"""In place of a row's size where it has none: no file has it, nor -1, which stands for a file that does not exist."""

_COLUMNS = {
    **{name: pc.field(name) for name in (*KEY, "k")},
    **{name: pc.field(name) for name in ("status", "bytes", "denoise_id", "reference_img_id")},
    "in_own_folder": pc.match_substring(pc.field("path"), _SHARED),
}


class ImageMasks(NamedTuple):
    """Two arrays of bool, (slots, captures)."""

    ok: np.ndarray
    """The image exists: its newest row says so, and a file of that size exists."""
    failed: np.ndarray
    """The newest row says that generating the image failed."""


def find_existing(
    output: Output, model_type: str, slots: pa.Table, captures: Sequence[Capture], img_per_prompt: int
) -> ImageMasks:
    """Which images of these slots exist, and which failed in their last run.

    Raises:
        Refused: an image exists under the same name, but of another prompt, seed, numbering or annotations.
    """
    shape = slots.num_rows, len(captures)
    masks = ImageMasks(ok=np.zeros(shape, bool), failed=np.zeros(shape, bool))
    rows = read_rows(output, model_type, _COLUMNS)
    if not rows.num_rows or not slots.num_rows:
        return masks
    slot_of_row = _match(slots, rows)
    row_is_ok = np.asarray(pc.equal(rows["status"], "ok"))
    _check_name_collisions(output, slots, rows.filter(pa.array(row_is_ok)), img_per_prompt)
    row_has_other_name, row_has_other_denoise = _conflicts(slots, rows, slot_of_row)
    bytes_in_row = np.asarray(rows["bytes"].fill_null(_NO_SIZE))
    for column, capture in enumerate(captures):
        newest_row = _newest_row_of_slots(rows, slot_of_row, capture, slots.num_rows)
        has_row = newest_row >= 0
        # A slot without a row has -1 here, which picks the last row: `has_row` masks what is taken for it.
        has_ok_row = has_row & row_is_ok[newest_row]
        folder = layout.step_folder(model_type, capture.snapshot, capture.step)
        has_file = has_ok_row & (file_sizes(output, folder, slots["file"]) == bytes_in_row[newest_row])
        # Another prompt or seed may replace an image whose file was deleted. Under another name it may not:
        # the old name could still be used by another file.
        is_other_image = has_file & row_has_other_denoise[newest_row]
        is_other_name = has_ok_row & row_has_other_name[newest_row]
        is_refused = is_other_image | is_other_name
        if is_refused.any():
            number = int(is_refused.argmax())
            (slot,) = slots.slice(number, 1).to_pylist()
            raise _other_image(output, model_type, slot, rows, int(newest_row[number]))
        masks.ok[:, column] = has_file
        masks.failed[:, column] = has_row & ~row_is_ok[newest_row]
    return masks


def _newest_row_of_slots(rows: pa.Table, slot_of_row: np.ndarray, capture: Capture, slots: int) -> np.ndarray:
    """For each slot the number of its newest row of a capture, -1 where it has none."""
    is_requested = slot_of_row >= 0
    (numbers,) = np.nonzero(is_of_capture(rows, capture.snapshot, capture.step) & is_requested)
    newest_row = np.full(slots, -1)
    newest_row[slot_of_row[numbers]] = numbers  # rows are sorted by age: the last one assigned is the newest
    return newest_row


def mask_rows_with_files(output: Output, model_type: str, rows: pa.Table) -> np.ndarray:
    """Which rows of the index are ok and have a file of the size that they say: bool, one per row.

    Args:
        rows: have snapshot, step, status, bytes and path.
    """
    mask = np.asarray(pc.equal(rows["status"], "ok")).copy()
    for capture in rows.group_by(["snapshot", "step"]).aggregate([]).to_pylist():
        (row_numbers,) = np.nonzero(is_of_capture(rows, capture["snapshot"], capture["step"]))
        rows_of_capture = rows.take(pa.array(row_numbers))
        folder = layout.step_folder(model_type, capture["snapshot"], capture["step"])
        files = pc.utf8_slice_codeunits(rows_of_capture["path"], len(folder) + 1)
        bytes_in_row = np.asarray(rows_of_capture["bytes"].fill_null(_NO_SIZE))
        mask[row_numbers] &= file_sizes(output, folder, files) == bytes_in_row
    return mask


def file_sizes(output: Output, folder: str, files: pa.ChunkedArray) -> np.ndarray:
    """The size of each file in a step's folder, -1 where it does not exist."""
    size_of_file = output.file_sizes(folder)
    if not size_of_file:
        return np.full(len(files), -1)
    names = pa.array(list(size_of_file), pa.string())
    sizes = pa.array(list(size_of_file.values()), pa.int64())
    sizes_or_null = pc.take(sizes, pc.index_in(files, value_set=names))
    return np.asarray(sizes_or_null.fill_null(-1))


def _match(slots: pa.Table, rows: pa.Table) -> np.ndarray:
    """For each row the number of its slot, -1 for rows of slots that are not requested."""
    query_ids = np.unique(np.asarray(slots["query_id"]))
    prompts, images = (int(pc.max(slots[name]).as_py()) + 1 for name in ("prompt_index", "image_index"))

    def keys(table: pa.Table) -> np.ndarray:
        """One whole number per slot that these ranges can hold, -1 outside of them."""
        query, prompt, image = (np.asarray(table[name]).astype(np.int64) for name in SLOT_KEY)
        position = np.minimum(np.searchsorted(query_ids, query), len(query_ids) - 1)
        is_in_range = (query_ids[position] == query) & (prompt < prompts) & (image < images)
        return np.where(is_in_range, (position * prompts + prompt) * images + image, -1)

    slot_keys, row_keys = keys(slots), keys(rows)
    order = np.argsort(slot_keys, kind="stable")
    position = np.minimum(np.searchsorted(slot_keys[order], row_keys), len(order) - 1)
    return np.where(slot_keys[order][position] == row_keys, order[position], -1)


def _conflicts(slots: pa.Table, rows: pa.Table, slot_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row whether its slot now has another file name, and whether it now requests another image."""
    compared = slots.select(["denoise_id", "k", "reference_img_id", "file"])
    slot_per_row = compared.take(pa.array(np.maximum(slot_of_row, 0)))
    in_own_folder = pc.invert(pc.starts_with(slot_per_row["file"], f"{layout.COMBINED}/"))
    name_differences = [
        pc.not_equal(slot_per_row["k"], rows["k"]),
        pc.not_equal(slot_per_row["reference_img_id"], rows["reference_img_id"]),
        pc.not_equal(in_own_folder, rows["in_own_folder"]),
    ]
    has_other_name = np.logical_or.reduce([np.asarray(column) for column in name_differences])
    has_other_denoise = np.asarray(pc.not_equal(slot_per_row["denoise_id"], rows["denoise_id"]))
    return has_other_name, has_other_denoise


def _other_image(output: Output, model_type: str, slot: dict, rows: pa.Table, row: int) -> OutputRefused:
    """The error for an existing image that differs from the requested one, naming what differs."""
    existing = {name: rows[name][row].as_py() for name in rows.column_names}
    query = existing["query_id"]
    same_image = (pc.field("query_id") == query) & (pc.field("denoise_id") == existing["denoise_id"])
    existing |= read_rows(output, model_type, ["prompt", "seed", "path"], only=same_image).to_pylist()[-1]
    existing["file"] = existing["path"].split("/", 1)[1]
    flag_of_column = {
        "k": "--img_per_prompt",
        "reference_img_id": "annotations",
        "prompt": "annotations or --prompt_field",
        "seed": "--seed or --seed_mode",
        "file": "annotations",
    }
    name = next(name for name in flag_of_column if existing[name] != slot[name])
    return OutputRefused(
        f"{output.url}: query {query}, prompt {existing['prompt_index']}: {name}: this output has {existing[name]!r},"
        f" this run requests {slot[name]!r} (other {flag_of_column[name]}); take another --output_base_path"
    )


def _check_name_collisions(output: Output, slots: pa.Table, rows: pa.Table, img_per_prompt: int) -> None:
    """Raise Refused if existing images that are not requested have names that requested ones would take."""
    prompt, image, k = (np.asarray(rows[name]).astype(np.int64) for name in ("prompt_index", "image_index", "k"))
    (misnumbered,) = np.nonzero(k != prompt * img_per_prompt + image)
    if len(misnumbered):
        row = misnumbered[0]
        img_per_prompt_of_output = (k[row] - image[row]) // prompt[row]
        raise OutputRefused(
            f"{output.url}: --img_per_prompt: this output has {img_per_prompt_of_output}, this run requests"
            f" {img_per_prompt}: file numbers would collide; take another --output_base_path"
        )
    requested_in_combined = slots.filter(pc.starts_with(slots["file"], f"{layout.COMBINED}/"))
    existing_in_combined = rows.filter(pc.invert(rows["in_own_folder"]))
    query_of_reference = {pair["reference_img_id"]: pair["query_id"] for pair in _pairs(requested_in_combined)}
    for pair in _pairs(existing_in_combined):
        reference, query = pair["reference_img_id"], pair["query_id"]
        requested_query = query_of_reference.get(reference, query)
        if requested_query != query:
            raise OutputRefused(
                f"{output.url}: reference {reference} belongs to query {query} in this output, but to query"
                f" {requested_query} in these annotations; take another --output_base_path"
            )


def _pairs(table: pa.Table) -> list[dict]:
    """The different pairs of reference and query."""
    return table.group_by(["reference_img_id", "query_id"]).aggregate([]).to_pylist()
