"""A worker without torch, for tests that are not about a model's pixels: its images are a function of prompt, seed and
capture. A real actor of the project's own queue in all else: Ray starts it, and its files are real."""

import hashlib
import io
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from actors.recipe import Capture, Recipe
from ray_app.generation import worker
from ray_app.generation.worker import ImageWorker
from ray_app.messages import LOG

FAILS = "~"
"""A prompt with this gives failed rows, as one does whose latents are not finite."""
TRUNCATED = "…"
"""A prompt with this counts as longer than the encoder reads."""
FAULT = "÷0"
"""A prompt with this raises what no generator should: a fault of the program."""
NEEDS_MEMORY = "8K"
"""A prompt with this halves the batch size from its batch on, as lack of memory does."""
BLOCK = 8
"""Pixels of one colour, in both directions: real codecs make small files of them."""

SECONDS_A_PROMPT = float(os.environ.get("SECONDS_A_PROMPT", "0.15"))
"""Which a paced worker takes without using a core: a run of hundreds of images is long enough to be disturbed."""

DRAWN_LOG = os.environ.get("DRAWN_LOG")
"""A file where paced workers record the number of prompts of each batch."""

Row = dict[str, Any]


class SyntheticGenerator:
    """Takes the place of `actors.generator.ImageGenerator`: same calls, same columns."""

    def __init__(self, recipe: Recipe, captures: Sequence[Capture]):
        self.recipe, self.captures = recipe, list(captures)
        self.batch_size = recipe.batch_size
        self.hardware = {"device": "synthetic"}

    def generate(self, batch: dict[str, Sequence[Any]]) -> list[list[Row]]:
        """Rows of each prompt, in the order of its captures."""
        if any(FAULT in prompt for prompt in batch["prompt"]):
            raise ZeroDivisionError("a fault of the program")
        if any(NEEDS_MEMORY in prompt for prompt in batch["prompt"]):
            self.batch_size = max(1, self.batch_size // 2)
        return [
            [self._row(prompt, seed, self.captures[number]) for number in numbers]
            for prompt, seed, numbers in zip(batch["prompt"], batch["seed"], batch["captures"], strict=True)
        ]

    def encode(self, drawn: list[list[Row]]) -> dict[str, list[Any]]:
        """The columns of `ImageGenerator.encode`."""
        rows = [{**row, "row": number} for number, of_prompt in enumerate(drawn) for row in of_prompt]
        for row in rows:
            if row["status"] == "ok":
                row["image"] = encoded(row["image"], self.recipe.image_format)
        return {name: [row.get(name) for row in rows] for name in ("row", *worker.SCHEMA.names)}

    def give_up(self, batch: dict[str, Sequence[Any]], error_type: str, message: str) -> list[list[Row]]:
        """Failed rows of these prompts."""
        return [
            [self._failed(self.captures[number], error_type, message) for number in numbers]
            for numbers in batch["captures"]
        ]

    def _row(self, prompt: str, seed: int, capture: Capture) -> Row:
        if FAILS in prompt:
            return self._failed(capture, "NonFiniteLatents", "the latents are not finite from step 1 on")
        return {
            **self._same(capture),
            "status": "ok",
            "prompt_truncated": TRUNCATED in prompt,
            "image": pixels(prompt, seed, capture, self.recipe),
            "timestep": 1000.0 - capture.step,
            "sigma": float(self.recipe.total_steps(capture) - capture.step),
            "denoise_seconds": capture.step / 1000,
            "decode_seconds": 0.001,
            "encode_seconds": 0.0001,
        }

    def _failed(self, capture: Capture, error_type: str, message: str) -> Row:
        return {
            **self._same(capture),
            "status": "failed",
            "error_type": error_type,
            "error_message": message,
            "prompt_truncated": False,
        }

    def _same(self, capture: Capture) -> Row:
        """Columns that are not about the prompt."""
        return {
            "snapshot": capture.snapshot,
            "step": capture.step,
            "num_inference_steps": self.recipe.total_steps(capture),
            "width": self.recipe.width,
            "height": self.recipe.height,
            "batch_size": self.batch_size,
        }


class SyntheticWorker(ImageWorker):
    """Loads nothing."""

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        return SyntheticGenerator(recipe, captures)


class TalkingWorker(SyntheticWorker):
    """Has something to say while it loads, the same as any other."""

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        LOG.warning("unet: 1 weights that it does not use")
        return super().load(recipe, captures, threads)


class PacedGenerator(SyntheticGenerator):
    def generate(self, batch: dict[str, Sequence[Any]]) -> list[list[Row]]:
        if DRAWN_LOG:
            with open(DRAWN_LOG, "a") as log:
                log.write(f"{os.getpid()} {len(batch['prompt'])}\n")
        time.sleep(SECONDS_A_PROMPT * len(batch["prompt"]))
        return super().generate(batch)


class PacedWorker(ImageWorker):
    """The same at a steady pace, for runs that are killed, stopped or cut off on the way."""

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        return PacedGenerator(recipe, captures)


def pixels(prompt: str, seed: int, capture: Capture, recipe: Recipe) -> np.ndarray:
    """Blocks of colour, uint8 (height, width, 3); at the last step both snapshots are the same, as of a real model."""
    last = capture.step == recipe.total_steps(capture)
    key = f"{recipe.model_type}/{prompt}/{seed}/{capture.step}/{'xt' if last else capture.snapshot}"
    chance = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    blocks = chance.integers(0, 256, (recipe.height // BLOCK, recipe.width // BLOCK, 3), np.uint8)
    return blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def encoded(image: np.ndarray, image_format: str) -> bytes:
    """The bytes of a jpg, png or webp file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format])
    return buffer.getvalue()
