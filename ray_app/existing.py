"""What of the asked images exists, decided by the index and the files, and whether it is what is asked for.
Knows the index's columns and the tree; nothing of what is drawn next."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.recipe import Capture, Recipe
from ray_app import index, layout, recipes
from ray_app.errors import OutputRefused
from ray_app.schema import KEY, SLOT_KEY
from ray_app.storage import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

_SHARED = f"/{layout.COMBINED}_query"

_COLUMNS = {
    **{name: pc.field(name) for name in (*KEY, "k")},
    **{name: pc.field(name) for name in ("status", "bytes", "denoise_id", "reference_img_id")},
    "in_own_folder": pc.match_substring(pc.field("path"), _SHARED),
}


def check_recipe(output: Output, recipe: Recipe) -> list[str]:
    """Compare with the recipes that this output's images were drawn by; a warning for each that moves low bits only.

    Raises:
        Refused: another recipe, naming each field that differs and both values.
    """
    rows = index.read(output, recipe.model_type, ["recipe"], only=pc.field("status") == "ok")
    warnings = []
    known = index.recipes(output, recipe.model_type)
    for fingerprint in rows["recipe"].unique().to_pylist():
        theirs = known.get(fingerprint, {})
        strict, low_bits = recipes.differences(recipe, theirs)
        if strict:
            drawn = Recipe(**{**vars(recipe), **theirs}).hub_revision if theirs else None
            moved = drawn and recipe.hub_revision and drawn != recipe.hub_revision
            back = f"; --revision {drawn} goes on with the model that it was drawn with" if moved else ""
            raise OutputRefused(
                f"{output.url}: holds {recipe.model_type} images of another recipe: {', '.join(strict)};"
                f" take another --output_base_path{back}"
            )
        warnings += [f"{output.url}: {text}: pictures may differ in their low bits" for text in low_bits]
    return warnings


def find(
    output: Output, model_type: str, slots: pa.Table, captures: Sequence[Capture], img_per_prompt: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which images are there, and which failed when they were last tried: two arrays of bool, (slots, captures).

    There means that the newest row says so and that a file of that size is there.

    Raises:
        Refused: an image is there under the same name, but of another prompt, seed, numbering or annotations.
    """
    found = np.zeros((slots.num_rows, len(captures)), bool)
    failed = np.zeros_like(found)
    rows = index.read(output, model_type, _COLUMNS)
    if not rows.num_rows or not slots.num_rows:
        return found, failed
    slot_of_row = _match(slots, rows)
    ok = np.asarray(pc.equal(rows["status"], "ok"))
    _check_neighbours(output, slots, rows.filter(pa.array(ok)), img_per_prompt)
    renamed, redrawn = _conflicts(slots, rows, slot_of_row)
    bytes_in_row = np.asarray(rows["bytes"].fill_null(-2))  # no file has that size, nor -1, that of no file
    for number, capture in enumerate(captures):
        newest = _newest_row_of_slots(rows, slot_of_row, capture, slots.num_rows)
        has_row = newest >= 0  # where it is false, what is taken below at -1 means nothing
        has_ok_row = has_row & ok[newest]
        folder = layout.step_folder(model_type, capture.snapshot, capture.step)
        has_file = has_ok_row & (sizes(output, folder, slots["file"]) == bytes_in_row[newest])
        # an image whose file is gone may be drawn anew from another prompt; under another name it would stay behind
        is_another = (has_file & redrawn[newest]) | (has_ok_row & renamed[newest])
        if is_another.any():
            slot = int(is_another.argmax())
            raise _other_image(output, model_type, slots.slice(slot, 1).to_pylist()[0], rows, int(newest[slot]))
        found[:, number] = has_file
        failed[:, number] = has_row & ~ok[newest]
    return found, failed


def _newest_row_of_slots(rows: pa.Table, slot_of_row: np.ndarray, capture: Capture, slots: int) -> np.ndarray:
    """For each slot the number of its newest row of a capture, -1 where it has none."""
    of_capture = pc.and_(pc.equal(rows["snapshot"], capture.snapshot), pc.equal(rows["step"], capture.step))
    (numbers,) = np.nonzero(np.asarray(of_capture) & (slot_of_row >= 0))
    newest = np.full(slots, -1)
    newest[slot_of_row[numbers]] = numbers  # rows are sorted by age: the last one assigned is the newest
    return newest


def are_there(output: Output, model_type: str, rows: pa.Table) -> np.ndarray:
    """Which rows of the index are ok, and their file there with the size that they say: bool, one a row.

    Args:
        rows: have snapshot, step, status, bytes and path.
    """
    there = np.asarray(pc.equal(rows["status"], "ok")).copy()
    for capture in rows.group_by(["snapshot", "step"]).aggregate([]).to_pylist():
        here = pc.and_(pc.equal(rows["snapshot"], capture["snapshot"]), pc.equal(rows["step"], capture["step"]))
        (places,) = np.nonzero(np.asarray(here))
        folder = layout.step_folder(model_type, capture["snapshot"], capture["step"])
        mine = rows.take(pa.array(places))
        files = pc.utf8_slice_codeunits(mine["path"], len(folder) + 1)
        there[places] &= sizes(output, folder, files) == np.asarray(mine["bytes"].fill_null(-2))
    return there


def sizes(output: Output, folder: str, files: pa.ChunkedArray) -> np.ndarray:
    """The size of each file in a step's folder, -1 where there is none."""
    listing = output.sizes(folder)
    if not listing:
        return np.full(len(files), -1)
    place = pc.index_in(files, value_set=pa.array(list(listing), pa.string()))
    found = pc.take(pa.array(list(listing.values()), pa.int64()), place)
    return np.asarray(found.fill_null(-1))


def _match(slots: pa.Table, rows: pa.Table) -> np.ndarray:
    """For each row the number of its slot, -1 for rows of slots that are not asked for."""
    query_ids = np.unique(np.asarray(slots["query_id"]))
    prompts, images = (int(pc.max(slots[name]).as_py()) + 1 for name in ("prompt_index", "image_index"))

    def keys(table: pa.Table) -> np.ndarray:
        query, prompt, image = (np.asarray(table[name]).astype(np.int64) for name in SLOT_KEY)
        place = np.minimum(np.searchsorted(query_ids, query), len(query_ids) - 1)
        asked = (query_ids[place] == query) & (prompt < prompts) & (image < images)
        return np.where(asked, (place * prompts + prompt) * images + image, -1)

    slot_keys, row_keys = keys(slots), keys(rows)
    order = np.argsort(slot_keys, kind="stable")
    place = np.minimum(np.searchsorted(slot_keys[order], row_keys), len(order) - 1)
    return np.where(slot_keys[order][place] == row_keys, order[place], -1)


def _conflicts(slots: pa.Table, rows: pa.Table, slot_of_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row whether its slot now has another file name, and whether it asks for another picture."""
    compared = slots.select(["denoise_id", "k", "reference_img_id", "file"])
    asked = compared.take(pa.array(np.maximum(slot_of_row, 0)))
    in_own_folder = pc.invert(pc.starts_with(asked["file"], f"{layout.COMBINED}/"))
    renamed = [
        pc.not_equal(asked["k"], rows["k"]),
        pc.not_equal(asked["reference_img_id"], rows["reference_img_id"]),
        pc.not_equal(in_own_folder, rows["in_own_folder"]),
    ]
    redrawn = pc.not_equal(asked["denoise_id"], rows["denoise_id"])
    return np.logical_or.reduce([np.asarray(column) for column in renamed]), np.asarray(redrawn)


def _other_image(output: Output, model_type: str, slot: dict, rows: pa.Table, row: int) -> OutputRefused:
    """The error for an image that stands where another is asked for, naming what differs."""
    there = {name: rows[name][row].as_py() for name in rows.column_names}
    query = there["query_id"]
    same = (pc.field("query_id") == query) & (pc.field("denoise_id") == there["denoise_id"])
    drawn = index.read(output, model_type, ["prompt", "seed", "path"], only=same).to_pylist()[-1]
    differences = (
        ("--img_per_prompt", "k", there["k"], slot["k"]),
        ("annotations", "reference_img_id", there["reference_img_id"], slot["reference_img_id"]),
        ("annotations or --prompt_field", "prompt", drawn["prompt"], slot["prompt"]),
        ("--seed or --seed_mode", "seed", drawn["seed"], slot["seed"]),
        ("annotations", "path", drawn["path"].split("/", 1)[1], slot["file"]),
    )
    flag, name, before, now = next(found for found in differences if found[2] != found[3])
    return OutputRefused(
        f"{output.url}: query {query}, prompt {there['prompt_index']}: {name} is {before!r} there and {now!r} here"
        f" (other {flag}); take another --output_base_path"
    )


def _check_neighbours(output: Output, slots: pa.Table, rows: pa.Table, img_per_prompt: int) -> None:
    """Raise Refused if images that are not asked for stand under names that ours would take."""
    prompt, image, k = (np.asarray(rows[name]).astype(np.int64) for name in ("prompt_index", "image_index", "k"))
    (other,) = np.nonzero(k != prompt * img_per_prompt + image)
    if len(other):
        before = (k[other[0]] - image[other[0]]) // prompt[other[0]]
        raise OutputRefused(
            f"{output.url}: --img_per_prompt is {before} there and {img_per_prompt} here: file numbers would"
            " collide; take another --output_base_path"
        )
    ours = slots.filter(pc.starts_with(slots["file"], f"{layout.COMBINED}/"))
    owner = {row["reference_img_id"]: row["query_id"] for row in _pairs(ours)}
    for row in _pairs(rows.filter(pc.invert(rows["in_own_folder"]))):
        if owner.get(row["reference_img_id"], row["query_id"]) != row["query_id"]:
            raise OutputRefused(
                f"{output.url}: reference {row['reference_img_id']} is query {row['query_id']}'s there and query"
                f" {owner[row['reference_img_id']]}'s here (other annotations); take another --output_base_path"
            )


def _pairs(table: pa.Table) -> list[dict]:
    return table.group_by(["reference_img_id", "query_id"]).aggregate([]).to_pylist()
