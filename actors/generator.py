"""ImageGenerator: the persistent actor's work; rows of prompts in, step-tagged encoded images out.
A plain class that needs no Ray: call it from a test, a benchmark or a notebook."""

import io
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from actors import pipelines
from actors.capture import StepCapture
from actors.recipe import Capture, Recipe

EMBEDDINGS_KEPT = 64
"""Prompts whose embeddings stay on the device; equal prompts stand close together in a plan."""


class ModelError(Exception):
    """The model can't be loaded or can't draw what the recipe asks; the message is one line."""


class ImageGenerator:
    """Holds one loaded pipeline and draws batches of prompts with it.

    Args:
        recipe: what to load and how to draw.
        captures: the images that can be asked for; a batch's `captures` column indexes it.
        threads: CPU threads of torch; they move low bits, so a run on CPUs uses one everywhere. None leaves torch's.

    Raises:
        ModelError: the model can't be loaded.
    """

    def __init__(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.recipe = recipe
        self.captures = list(captures)
        try:
            self.family = pipelines.load(recipe)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{recipe.model_path}: can't be loaded as {recipe.model_type}: {reason}") from error
        self._embeddings: OrderedDict[str, pipelines.Embeddings] = OrderedDict()

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Draw up to `batch_size` prompts.

        Args:
            batch: columns `prompt` (str), `seed` (int) and `captures` (indices into the generator's captures).

        Returns:
            Columns with one row an image asked for, in the order of the batch and of its `captures`; always all of
            them: a prompt that can't be drawn gives rows with status "failed". `row` is the place in the batch,
            `image` the encoded bytes or None. `denoise_seconds` runs from the batch's start to the step, shared by
            its prompts, so at the last step it is what one image costs.
        """
        requests = [
            (prompt, int(seed), [int(index) for index in wanted])
            for prompt, seed, wanted in zip(batch["prompt"], batch["seed"], batch["captures"], strict=True)
        ]
        rows: list[dict[str, Any]] = []
        for row, drawn in enumerate(self._draw_all(requests)):
            rows += [{"row": row, **image} for image in drawn]
        return {name: [row[name] for row in rows] for name in ("row", *OUTPUT_COLUMNS)}

    def pixels(self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]) -> dict[Capture, Any]:
        """Draw and decode without encoding: for each capture a uint8 array (n, height, width, 3).

        Raises whatever the pipeline raises; at most `batch_size` prompts, and the batch is padded to that.
        """
        capture = self._denoise(prompts, seeds, captures)
        return {
            wanted: pipelines.decode_to_uint8(self.family, latents)[: len(prompts)].numpy()
            for wanted, latents in capture.latents.items()
        }

    def _draw_all(self, requests: list[tuple[str, int, list[int]]]) -> list[list[dict[str, Any]]]:
        """Each request's images. If the batch fails, its prompts are drawn one by one and only the guilty one fails."""
        try:
            return self._draw(requests)
        except Exception as error:
            if len(requests) > 1:
                return [self._draw_all([request])[0] for request in requests]
            return [[self._failed(self.captures[index], error) for index in requests[0][2]]]

    def _draw(self, requests: list[tuple[str, int, list[int]]]) -> list[list[dict[str, Any]]]:
        prompts, seeds = [prompt for prompt, _, _ in requests], [seed for _, seed, _ in requests]
        asked = sorted({self.captures[index] for _, _, wanted in requests for index in wanted})
        capture = self._denoise(prompts, seeds, asked)
        images: dict[tuple[int, Capture], dict[str, Any]] = {}
        for wanted in asked:
            latents = capture.latents[wanted]
            finite = torch.isfinite(latents).flatten(1).all(1).tolist()
            started = time.perf_counter()
            pixels = pipelines.decode_to_uint8(self.family, latents).numpy()
            decode_seconds = (time.perf_counter() - started) / len(latents)
            for row, (prompt, _, indices) in enumerate(requests):
                if self.captures.index(wanted) not in indices:
                    continue
                if not finite[row]:
                    bad = FloatingPointError(f"the latents of step {wanted.step} are not finite")
                    images[row, wanted] = self._failed(wanted, bad)
                    continue
                images[row, wanted] = {
                    **self._blank(wanted),
                    "image": encode(pixels[row], self.recipe.image_format, self.recipe.image_quality),
                    "status": "ok",
                    "prompt_truncated": self.family.is_truncated(prompt),
                    "timestep": capture.timesteps[wanted.step],
                    "sigma": capture.sigmas[wanted.step],
                    "denoise_seconds": capture.seconds[wanted.step] / len(requests),
                    "decode_seconds": decode_seconds,
                }
        return [
            [images[row, self.captures[index]] for index in indices] for row, (_, _, indices) in enumerate(requests)
        ]

    def _denoise(self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]) -> StepCapture:
        """Run the model up to the last wanted step. The batch is padded with its last prompt to the fixed size."""
        if not 0 < len(prompts) <= self.recipe.batch_size:
            raise ValueError(f"{len(prompts)} prompts in a batch of {self.recipe.batch_size}")
        padding = self.recipe.batch_size - len(prompts)
        prompts, seeds = [*prompts, *[prompts[-1]] * padding], [*seeds, *[seeds[-1]] * padding]
        embeddings = [self._embed(prompt) for prompt in prompts]
        with StepCapture(captures).attached(self.family.pipe) as capture:
            pipelines.denoise(self.family, embeddings, list(seeds), capture)
        missing = set(captures) - set(capture.latents)
        if missing:
            steps = len(self.family.pipe.scheduler.timesteps)
            raise ModelError(f"the scheduler ran {steps} steps and never came to {sorted(missing)}")
        return capture

    def _embed(self, prompt: str) -> pipelines.Embeddings:
        """A prompt's embeddings, encoded alone: encoding in a batch would move low bits."""
        if prompt not in self._embeddings:
            self._embeddings[prompt] = self.family.encode(prompt)
            if len(self._embeddings) > EMBEDDINGS_KEPT:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(prompt)
        return self._embeddings[prompt]

    def _blank(self, capture: Capture) -> dict[str, Any]:
        recipe = self.recipe
        known = {"snapshot": capture.snapshot, "step": capture.step, "batch_size": recipe.batch_size}
        return {**dict.fromkeys(OUTPUT_COLUMNS), **known, "width": recipe.width, "height": recipe.height}

    def _failed(self, capture: Capture, error: Exception) -> dict[str, Any]:
        message = " ".join(str(error).split())[:500]
        return {
            **self._blank(capture),
            "status": "failed",
            "error_type": type(error).__name__,
            "error_message": message,
            "prompt_truncated": False,
        }


OUTPUT_COLUMNS = (
    "snapshot",
    "step",
    "image",
    "status",
    "error_type",
    "error_message",
    "prompt_truncated",
    "timestep",
    "sigma",
    "width",
    "height",
    "batch_size",
    "denoise_seconds",
    "decode_seconds",
)


def encode(pixels: np.ndarray, image_format: str, quality: int | None) -> bytes:
    """RGB pixels, uint8 (h, w, 3), as the bytes of a jpg, png or webp file. Equal pixels give equal bytes."""
    buffer = io.BytesIO()
    pillow_format = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format]
    options = {} if quality is None else {"quality": quality}
    Image.fromarray(pixels).save(buffer, format=pillow_format, **options)
    return buffer.getvalue()
