"""Images that cost nothing: a worker that returns slices of random bytes, so that only the queue is measured.
Knows the columns that an image generator returns; no torch."""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from actors.recipe import Capture, Recipe
from ray_app.generation.worker import SCHEMA, ImageWorker

BYTES = 2**22
"""Random bytes that all images are cut from, each at another offset."""


class SyntheticImages:
    """Takes the place of `actors.generator.ImageGenerator`.

    Args:
        notes: a folder; the moment of the first batch is written to a file in it.
    """

    def __init__(self, recipe: Recipe, captures: Sequence[Capture], image_bytes: int, notes: str):
        self.recipe, self.captures = recipe, list(captures)
        self.image_bytes, self.notes = image_bytes, notes
        self.hardware = {"device": "none"}
        self._bytes = os.urandom(BYTES + image_bytes)

    def generate(self, batch: dict[str, Sequence[Any]]) -> list[list[Capture]]:
        """Each prompt's captures: there is nothing to generate."""
        if self.notes:
            Path(self.notes, f"{os.getpid()}-{time.time_ns()}").write_text(str(time.time()))
            self.notes = ""
        return [[self.captures[number] for number in numbers] for numbers in batch["captures"]]

    def encode(self, generated: list[list[Capture]]) -> dict[str, list[Any]]:
        """One row per requested image."""
        requested = [(row, capture) for row, captures in enumerate(generated) for capture in captures]
        same: dict[str, Any] = {field.name: 0.0 if pa.types.is_floating(field.type) else None for field in SCHEMA}
        same |= {"status": "ok", "prompt_truncated": False}
        same |= {name: getattr(self.recipe, name) for name in ("width", "height", "batch_size", "num_inference_steps")}
        starts = (random.randrange(BYTES) for _ in requested)
        columns = {name: [value] * len(requested) for name, value in same.items()}
        return columns | {
            "row": [row for row, _ in requested],
            "snapshot": [capture.snapshot for _, capture in requested],
            "step": [capture.step for _, capture in requested],
            "image": [self._bytes[start : start + self.image_bytes] for start in starts],
        }


def synthetic_worker(image_bytes: int, notes: Path) -> type[ImageWorker]:
    """A worker with `SyntheticImages` instead of a model."""

    class SyntheticWorker(ImageWorker):
        """Defined here so that it is sent to the actors together with its arguments."""

        def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
            return SyntheticImages(recipe, captures, image_bytes, str(notes))

    return SyntheticWorker


def first(notes: Path) -> float:
    """When the first batch of all actors began."""
    return min(float(file.read_text()) for file in notes.iterdir())
