"""ImageGenerator: the persistent actor's work; rows of prompts in, step-tagged encoded images out.
A plain class that needs no Ray: call it from a test, a benchmark or a notebook."""

import dataclasses
import gc
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

NO_MEMORY = ("can't allocate memory", "could not create a primitive", "out of memory", "ALLOC_FAILED")
"""What a RuntimeError says where memory is what is missing: torch's CPU allocator, oneDNN, CUDA, cuBLAS and cuDNN."""

EMBEDDINGS_KEPT = 64
"""Prompts whose embeddings stay on the device; equal prompts stand close together in a plan."""


class ModelError(Exception):
    """The model can't be loaded or can't draw what the recipe asks; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to draw and the captures wanted of it."""

    prompt: str
    seed: int
    captures: list[Capture]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an image could not be drawn, as it stands in the index."""

    error_type: str
    message: str


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
        self.batch_size = recipe.batch_size  # halved whenever memory runs out, and never raised again
        try:
            self.family = pipelines.load(recipe)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{recipe.model_path}: can't be loaded as {recipe.model_type}: {reason}") from error
        self._embeddings: OrderedDict[str, pipelines.Embeddings] = OrderedDict()

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Draw up to `recipe.batch_size` prompts.

        Args:
            batch: columns `prompt` (str), `seed` (int) and `captures` (indices into the generator's captures).

        Returns:
            Columns with one row an image asked for, in the order of the batch and of its `captures`; always all of
            them: a prompt that can't be drawn gives rows with status "failed". `row` is the place in the batch,
            `image` the encoded bytes or None. `denoise_seconds` runs from the batch's start to the step, shared by
            its prompts, so at the last step it is what one image costs.
        """
        requests = [
            Request(prompt, int(seed), [self.captures[index] for index in wanted])
            for prompt, seed, wanted in zip(batch["prompt"], batch["seed"], batch["captures"], strict=True)
        ]
        return _columns(self._draw_all(requests))

    def give_up(self, batch: dict[str, Sequence[Any]], error_type: str, message: str) -> dict[str, list[Any]]:
        """What `__call__` would return if none of these prompts could be drawn, without trying."""
        failure = Failure(error_type, message)
        wanted = ([self.captures[index] for index in indices] for indices in batch["captures"])
        return _columns([[self._failed(capture, failure) for capture in captures] for captures in wanted])

    def pixels(self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]) -> dict[Capture, Any]:
        """Draw and decode without encoding: for each capture a uint8 array (n, height, width, 3).

        Raises whatever the pipeline raises; at most `batch_size` prompts, and the batch is padded to that.
        """
        capture = self._denoise(prompts, seeds, captures)
        return {
            wanted: pipelines.decode_to_uint8(self.family, latents)[0][: len(prompts)]
            for wanted, latents in capture.latents.items()
        }

    def _draw_all(self, requests: list[Request]) -> list[list[dict[str, Any]]]:
        """Each request's images, in batches that fit; a prompt that fails costs no other."""
        if len(requests) > self.batch_size:
            first, rest = requests[: self.batch_size], requests[self.batch_size :]
            return self._draw_all(first) + self._draw_all(rest)
        try:
            return self._draw(requests)
        except Exception as error:
            # not the error itself: its frames would hold the batch's tensors while it is drawn again
            no_memory = _is_out_of_memory(error)
            name = "OutOfMemory" if no_memory else type(error).__name__
            failure = Failure(name, " ".join(str(error).split())[:500])
        if no_memory:
            _release_memory(self.recipe.device)
            if self.batch_size > 1:
                self.batch_size //= 2
                return self._draw_all(requests)
        if len(requests) > 1:
            return [self._draw_all([request])[0] for request in requests]
        return [[self._failed(capture, failure) for capture in requests[0].captures]]

    def _draw(self, requests: list[Request]) -> list[list[dict[str, Any]]]:
        asked = sorted({capture for request in requests for capture in request.captures})
        steps = self._denoise([request.prompt for request in requests], [request.seed for request in requests], asked)
        bad_steps = steps.first_bad_steps()
        images: dict[tuple[int, Capture], dict[str, Any]] = {}
        for capture in asked:
            started = time.perf_counter()
            pixels, finite = pipelines.decode_to_uint8(self.family, steps.latents[capture])
            decode_seconds = (time.perf_counter() - started) / len(pixels)
            for row, request in enumerate(requests):
                if capture not in request.captures:
                    continue
                failure = self._why_bad(capture, pixels[row], bad_steps[row], finite[row])
                if failure:
                    images[row, capture] = self._failed(capture, failure)
                    continue
                started = time.perf_counter()
                image = encode(pixels[row], self.recipe.image_format, self.recipe.image_quality)
                images[row, capture] = {
                    **self._blank(capture),
                    "image": image,
                    "status": "ok",
                    "prompt_truncated": self.family.is_truncated(request.prompt),
                    "timestep": steps.timesteps[capture.step],
                    "sigma": steps.sigmas[capture.step],
                    "denoise_seconds": steps.seconds[capture.step] / len(requests),
                    "decode_seconds": decode_seconds,
                    "encode_seconds": time.perf_counter() - started,
                }
        return [[images[row, capture] for capture in request.captures] for row, request in enumerate(requests)]

    def _why_bad(self, capture: Capture, pixels: np.ndarray, bad_step: int | None, finite: bool) -> Failure | None:
        """Why a picture is none, or None: diffusers would save it as black and say nothing."""
        if bad_step is not None and bad_step <= capture.step:
            return Failure("NonFiniteLatents", f"the latents are not finite from step {bad_step} on")
        if not finite:
            return Failure("NonFinitePixels", f"the decoded pixels of step {capture.step} are not finite")
        if capture.step == self.recipe.num_inference_steps and pixels.min() == pixels.max():
            return Failure("FlatImage", f"the picture of the last step is one flat value, {pixels.min()}")
        return None

    def _denoise(self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]) -> StepCapture:
        """Run the model up to the last wanted step. The batch is padded with its last prompt to the fixed size."""
        if not 0 < len(prompts) <= self.batch_size:
            raise ValueError(f"{len(prompts)} prompts in a batch of {self.batch_size}")
        padding = self.batch_size - len(prompts)
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
        known = {"snapshot": capture.snapshot, "step": capture.step, "batch_size": self.batch_size}
        return {**dict.fromkeys(OUTPUT_COLUMNS), **known, "width": self.recipe.width, "height": self.recipe.height}

    def _failed(self, capture: Capture, failure: Failure) -> dict[str, Any]:
        why = {"status": "failed", "error_type": failure.error_type, "error_message": failure.message}
        return {**self._blank(capture), **why, "prompt_truncated": False}


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
    "encode_seconds",
)


def encode(pixels: np.ndarray, image_format: str, quality: int | None) -> bytes:
    """RGB pixels, uint8 (h, w, 3), as the bytes of a jpg, png or webp file. Equal pixels give equal bytes."""
    buffer = io.BytesIO()
    pillow_format = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format]
    options = {} if quality is None else {"quality": quality}
    Image.fromarray(pixels).save(buffer, format=pillow_format, **options)
    return buffer.getvalue()


def _columns(drawn: list[list[dict[str, Any]]]) -> dict[str, list[Any]]:
    """Rows of each request as columns, with `row`, the request's number."""
    rows = [{"row": number, **image} for number, images in enumerate(drawn) for image in images]
    return {name: [row[name] for row in rows] for name in ("row", *OUTPUT_COLUMNS)}


def _is_out_of_memory(error: Exception) -> bool:
    """Of the GPU, or of the host, where torch and the libraries below it raise a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def _release_memory(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
