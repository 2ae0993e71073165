"""Images drawn again from nothing but what the index holds, and compared byte for byte.
Knows recipes and rows; the files it never looks at, their hashes are in the rows."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from actors.errors import ModelError
from actors.recipe import Capture, Recipe
from ray_app import schema
from ray_app.checks import Problem
from ray_app.partition import Partition

SCHEMA = pa.schema(
    [schema.SCHEMA.field(name) for name in ("prompt", "seed", "snapshot", "step", "path", "sha256", "recipe")]
)


def redraw(model_type: str, found: Partition, numbers: np.ndarray) -> Iterator[Problem]:
    """Draw the rows of these numbers again, in this process; those that come out otherwise.

    On CPUs with one thread, as runs on CPUs draw. What was drawn on a GPU is drawn on one again.
    """
    by_recipe: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, row in zip(numbers.tolist(), found.take(numbers, SCHEMA).to_pylist(), strict=True):
        by_recipe.setdefault(row["recipe"], []).append((number, row))
    for fingerprint, rows in by_recipe.items():
        for (number, row), why in zip(rows, _compare(found.recipes.get(fingerprint), rows), strict=True):
            if why:
                yield Problem(why[0], row["path"], why[1], model_type, number)


def _compare(known: dict[str, Any] | None, rows: list[tuple[int, dict[str, Any]]]) -> Iterator[tuple[str, str] | None]:
    """For each row what is wrong, as kind and detail, or None."""
    captures = sorted({Capture(row["step"], row["snapshot"]) for _, row in rows})
    try:
        generator = _load(known, captures)
    except ModelError as error:
        yield from [("not redrawn", str(error))] * len(rows)
        return
    size = generator.recipe.batch_size
    for start in range(0, len(rows), size):
        batch = [row for _, row in rows[start : start + size]]
        wanted = [captures.index(Capture(row["step"], row["snapshot"])) for row in batch]
        drawn = generator(
            {
                "prompt": [row["prompt"] for row in batch],
                "seed": [row["seed"] for row in batch],
                "captures": [[number] for number in wanted],
            }
        )
        for number, row in enumerate(batch):
            yield _difference(row, {name: values[number] for name, values in drawn.items()})


def _load(known: dict[str, Any] | None, captures: list[Capture]) -> Any:
    """The generator of a recipe.

    Raises:
        ModelError: its images can't be drawn again here.
    """
    if known is None:
        raise ModelError("no part of the index holds its recipe in full")
    try:
        recipe = Recipe(**known)
    except TypeError as error:  # of another version, with other fields
        raise ModelError(str(error)) from None
    import torch

    from actors.generator import ImageGenerator

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("it was drawn on a GPU, and this machine has none; other hardware gives other low bits")
    return ImageGenerator(recipe, captures, threads=1 if recipe.device == "cpu" else None)


def _difference(row: dict[str, Any], image: dict[str, Any]) -> tuple[str, str] | None:
    if image["status"] != "ok":
        return "not redrawn", f"{image['error_type']}: {image['error_message']}"
    digest = hashlib.sha256(image["image"]).hexdigest()
    if digest == row["sha256"]:
        return None
    return "redrawn differently", f"sha256 {digest[:12]}… now, {str(row['sha256'])[:12]}… in the index"
