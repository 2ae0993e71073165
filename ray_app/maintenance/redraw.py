"""Images generated again from nothing but the index, and compared byte for byte by their hashes.
Knows recipes and rows. Where the hardware differs, the image files are read and compared by their pixels."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from actors.errors import DeviceLost, ModelError
from actors.recipe import Capture, Recipe
from ray_app import image_files
from ray_app.errors import one_line
from ray_app.index import schema, versions
from ray_app.index.partition import Partition
from ray_app.maintenance.checks import Problem
from ray_app.messages import LOG
from ray_app.output.output import Output

SCHEMA = pa.schema(
    [schema.SCHEMA.field(name) for name in ("prompt", "seed", "snapshot", "step", "path", "sha256", "recipe")]
)
DIFFERENT = "redrawn differently"
COMPARED = ("device", "capability", "cuda")
"""What decides which kernels run; the versions of packages are compared on their own."""
LEAST_PSNR = 30.0
"""In dB: what images that other hardware generated have in common at least; low bits of a kernel differ there."""


def redraw(model_type: str, partition: Partition, numbers: np.ndarray) -> Iterator[Problem]:
    """Generate the images of the rows with these numbers again, in this process; a problem for each that differs.

    On CPUs with one thread, as runs on CPUs do. Images of a GPU are generated on a GPU again.
    """
    other_versions = versions.describe_difference(partition.versions)
    rows_by_recipe: dict[str, list[dict[str, Any]]] = {}
    numbers_by_recipe: dict[str, list[int]] = {}
    for number, row in zip(numbers.tolist(), partition.take(numbers, SCHEMA).to_pylist(), strict=True):
        rows_by_recipe.setdefault(row["recipe"], []).append(row)
        numbers_by_recipe.setdefault(row["recipe"], []).append(number)
    for fingerprint, rows in rows_by_recipe.items():
        differences = _compare(partition.recipes.get(fingerprint), rows, partition)
        for number, row, difference in zip(numbers_by_recipe[fingerprint], rows, differences, strict=True):
            if difference is not None:
                kind, detail = difference
                if kind == DIFFERENT and other_versions:
                    detail += f" ({other_versions})"
                yield Problem(kind, row["path"], detail, model_type, number)


def _compare(
    fields: dict[str, Any] | None, rows: list[dict[str, Any]], partition: Partition
) -> Iterator[tuple[str, str] | None]:
    """For each row what is wrong, as kind and detail, or None; all rows are of one recipe."""
    capture_of_row = [Capture(row["step"], row["snapshot"]) for row in rows]
    captures = sorted(set(capture_of_row))
    try:
        generator = _load(fields, captures)
    except (ModelError, DeviceLost) as error:
        yield from [("not redrawn", str(error))] * len(rows)
        return
    other_hardware = describe_other_hardware(partition.hardware, generator.hardware)
    if other_hardware:
        LOG.warning(f"{other_hardware}: images count as equal from a PSNR of {LEAST_PSNR:g} dB on")
    batch_size = generator.recipe.batch_size
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        # each prompt with the one capture of its row, as an index into the generator's captures
        capture_indices = [[captures.index(capture)] for capture in capture_of_row[start : start + batch_size]]
        images = generator(
            {
                "prompt": [row["prompt"] for row in batch],
                "seed": [row["seed"] for row in batch],
                "captures": capture_indices,
            }
        )
        for place, row in enumerate(batch):
            image = {name: values[place] for name, values in images.items()}
            difference = _difference(row, image)
            if difference is not None and difference[0] == DIFFERENT and other_hardware:
                difference = _difference_of_pixels(partition.output, row, image["image"])
            yield difference


def describe_other_hardware(recorded: list[dict[str, str]], here: dict[str, str]) -> str | None:
    """How the hardware that generated images differs from this process's; None if it does not, or none is recorded."""
    others = [kind for kind in recorded if any(kind.get(name) != here.get(name) for name in COMPARED)]
    if not others:
        return None
    return f"generated on {' and '.join(map(_name, others))}, compared on {_name(here)}"


def _name(hardware: dict[str, str]) -> str:
    facts = [f"{name} {hardware[name]}" for name in ("driver", "torch", "cuda") if hardware.get(name)]
    return f"{hardware.get('device', '?')} ({', '.join([hardware.get('capability', ''), *facts]).lstrip(', ')})"


def _difference_of_pixels(output: Output, row: dict[str, Any], image: bytes) -> tuple[str, str] | None:
    """What is wrong with an image that other hardware generated."""
    try:
        there, here = image_files.decode(output.read(row["path"])), image_files.decode(image)
    except OSError as error:
        return DIFFERENT, f"the image can't be read: {one_line(error)}"
    if there.shape != here.shape:
        return DIFFERENT, "its size differs"
    if (psnr := image_files.psnr(there, here)) < LEAST_PSNR:
        return DIFFERENT, f"PSNR {psnr:.1f} dB, below {LEAST_PSNR:g} dB"
    return None


def _load(fields: dict[str, Any] | None, captures: list[Capture]) -> Any:
    """The generator of a recipe with these fields.

    Raises:
        ModelError: its images can't be generated again by this process.
    """
    if fields is None:
        raise ModelError("no part of the index holds its recipe in full")
    try:
        recipe = Recipe(**fields)
    except TypeError as error:  # of another version, with other fields
        raise ModelError(str(error)) from None
    import torch

    from actors.generator import ImageGenerator

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("it was generated on a GPU, and this machine has none; other hardware gives other low bits")
    return ImageGenerator(recipe, captures, threads=1 if recipe.device == "cpu" else None)


def _difference(row: dict[str, Any], image: dict[str, Any]) -> tuple[str, str] | None:
    if image["status"] != "ok":
        return "not redrawn", f"{image['error_type']}: {image['error_message']}"
    digest = hashlib.sha256(image["image"]).hexdigest()
    if digest == row["sha256"]:
        return None
    return DIFFERENT, f"sha256 {digest[:12]}… now, {str(row['sha256'])[:12]}… in the index"
