"""ImageGenerator: the persistent actor's work; rows of prompts in, step-tagged encoded images out.
A plain class that needs no Ray: call it from a test, a benchmark or a notebook."""

import contextlib
import dataclasses
import io
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from actors import compiled, device, memory, pipelines, schedule
from actors.capture import StepCapture
from actors.errors import DeviceLost, DeviceUnfit, ModelError, ModelNeedsMemory, one_line
from actors.prompts import EncodedPrompt, PromptCache
from actors.recipe import Capture, Recipe
from actors.schedule import Schedule
from actors.timing import Timing, Work, timed

LOG = logging.getLogger("proxyqueue")

SAME = 0.01
"""Share of the largest latent by which the same step may differ when it is repeated: low bits of a GPU's kernels."""
EMBEDDINGS_KEPT = 64
"""Prompts whose embeddings stay on the device, or two batches if that is more; a plan keeps equal prompts close."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and the captures requested of it."""

    prompt: str
    seed: int
    captures: list[Capture]


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why an image could not be generated, as recorded in the index."""

    error_type: str
    message: str


@dataclasses.dataclass
class GeneratedImage:
    """An image that is not encoded yet: its row without the file, and its pixels, uint8 (h, w, 3)."""

    row: dict[str, Any]
    pixels: np.ndarray | None


Generated = list[list[GeneratedImage]]
"""Each prompt's images, in the order of its captures."""


class ImageGenerator:
    """Holds one loaded pipeline and generates the images of batches of prompts with it.

    `generate` needs the device, `encode` a core: two threads may overlap one batch's `encode` with the next one's
    `generate`. Only one thread at a time may call `generate`; the other may `prefetch` the next batch's prompts.

    Args:
        recipe: what to load and how to generate.
        captures: the images that can be requested; a batch's `captures` column indexes it.
        threads: CPU threads of torch. Their number changes low bits, so a run on CPUs uses one everywhere; None keeps
            torch's default.
        memory_share: the share of its GPU's memory that this process may use.

    Raises:
        ModelError: the model can't be loaded; a ModelNeedsMemory if memory is what is missing.
        DeviceUnfit: the device can't generate with any model.
    """

    def __init__(
        self, recipe: Recipe, captures: Sequence[Capture], threads: int | None = None, memory_share: float = 1.0
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self.recipe = recipe
        self.captures = list(captures)
        self._sizer = memory.BatchSizer(recipe.batch_size, recipe.device, pipelines.most_decoded(recipe))
        self.on_notice: Callable[[str], object] = LOG.warning
        """Set it to be told what a user should know of this generator."""
        device.set_deterministic(recipe.deterministic)
        self.probe = device.make_probe(recipe.device)
        """Raises if the device no longer answers; called after an error."""
        if loss := device.find_loss(self.probe):
            raise DeviceUnfit(device.describe(loss)) from loss
        if recipe.device == "cuda" and memory_share < 1:
            torch.cuda.set_per_process_memory_fraction(memory_share)
        try:
            self.model = pipelines.load(recipe)
        except Exception as error:
            if not memory.is_out_of_memory(error) and device.is_device_error(error):
                raise DeviceUnfit(device.describe(error)) from error
            kind = ModelNeedsMemory if memory.is_out_of_memory(error) else ModelError
            raise kind(f"{recipe.model_path}: can't be loaded as {recipe.model_type}: {one_line(error)}") from error
        self.hardware = device.hardware(recipe.device)
        """What generates the images, as it is recorded."""
        self.on_timing: Callable[[Timing], object] = lambda timing: None
        """Called with the duration of each piece of work after it has ended, in the thread that did it."""
        self._prompts = PromptCache(self._encode_prompt, max(EMBEDDINGS_KEPT, 2 * recipe.batch_size), recipe.device)
        self._schedules: dict[int, Schedule] = {}
        self.peak: int | None = None
        """Bytes of a GPU that torch reserved at most, a full batch included; None if that did not fit, and on CPUs."""
        with self._compiling():
            for steps in sorted({recipe.total_steps(capture) for capture in self.captures}):
                self._try(steps)

    def _compiling(self) -> AbstractContextManager[None]:
        """While the first step compiles, other processes of this machine wait for its code, if the recipe compiles."""
        if not self.recipe.compiled:
            return contextlib.nullcontext()
        return compiled.shared(self.recipe.fingerprint(), *self.hardware.values())

    @property
    def batch_size(self) -> int:
        """Prompts per batch: the recipe's, or fewer after memory ran out."""
        return self._sizer.size

    def __call__(self, batch: dict[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Generate the images of up to `recipe.batch_size` prompts.

        Args:
            batch: columns `prompt` (str), `seed` (int) and `captures` (indices into the generator's captures).

        Returns:
            Columns with one row per requested image, in the order of the batch and of its `captures`; always all of
            them: a prompt that fails gives rows with status "failed". `row` is the place in the batch,
            `image` the encoded bytes or None. `denoise_seconds` runs from the batch's start to the step, shared by
            its prompts, so at the last step it is the cost of one image.
        """
        return self.encode(self.generate(batch))

    def generate(self, batch: dict[str, Sequence[Any]]) -> Generated:
        """The first half of `__call__`: everything that the model is needed for.

        Raises:
            DeviceLost: the device no longer answers; nothing of the batch is generated.
        """
        requests = []
        for prompt, seed, indices in zip(batch["prompt"], batch["seed"], batch["captures"], strict=True):
            requests.append(Request(prompt, int(seed), [self.captures[index] for index in indices]))
        return self._generate_all(requests)

    def prefetch(self, prompts: Sequence[str]) -> None:
        """Encode prompts of a later `generate`, whose images stay the same. Does nothing on CPUs, and never raises."""
        self._prompts.encode_ahead(prompts)

    def encode(self, generated: Generated) -> dict[str, list[Any]]:
        """The second half: pixels become files; the columns that `__call__` returns."""
        rows = []
        for number, images in enumerate(generated):
            rows += [{"row": number, **self._encoded(image)} for image in images]
        return {name: [row[name] for row in rows] for name in ("row", *OUTPUT_COLUMNS)}

    def give_up(self, batch: dict[str, Sequence[Any]], error_type: str, message: str) -> Generated:
        """What `generate` would return if all of these prompts failed, without trying."""
        failure = Failure(error_type, message)
        given_up = []
        for indices in batch["captures"]:
            given_up.append([self._failed(self.captures[index], failure) for index in indices])
        return given_up

    def pixels(self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]) -> dict[Capture, Any]:
        """Denoise and decode without encoding: for each capture a uint8 array (n, height, width, 3).

        Raises whatever the pipeline raises; at most `batch_size` prompts, and the batch is padded to that.
        """
        return {
            capture: self._to_pixels(run.latents[capture])[0][: len(prompts)]
            for capture, run in self._denoise(prompts, seeds, captures).items()
        }

    def timed(self, work: Work) -> AbstractContextManager[Timing]:
        """Time the block and report it to `on_timing`."""
        return timed(work, self.on_timing)

    def _generate_all(self, requests: list[Request]) -> Generated:
        """Each request's images, in batches that fit; a prompt that fails affects no other."""
        if len(requests) > self.batch_size:
            first, rest = requests[: self.batch_size], requests[self.batch_size :]
            return self._generate_all(first) + self._generate_all(rest)
        try:
            return self._generate(requests)
        except Exception as error:
            failure = Failure(memory.error_type(error), " ".join(str(error).split())[:500])
            is_smaller = self._sizer.on_error(error, "batch")
            self._check_device(error)
        if is_smaller:
            return self._generate_all(requests)
        if len(requests) > 1:
            return [self._generate_all([request])[0] for request in requests]
        return [[self._failed(capture, failure) for capture in requests[0].captures]]

    def _check_device(self, error: Exception) -> None:
        """Raise DeviceLost if the device no longer answers after an error."""
        if loss := device.find_loss(self.probe):
            raise DeviceLost(device.describe(error)) from loss

    def _generate(self, requests: list[Request]) -> Generated:
        prompts = [request.prompt for request in requests]
        seeds = [request.seed for request in requests]
        captures = sorted(set().union(*(request.captures for request in requests)))
        is_truncated = [self._prompts.get(prompt).is_truncated for prompt in prompts]
        by_capture: dict[Capture, list[GeneratedImage]] = {}
        for capture, run in self._denoise(prompts, seeds, captures).items():
            by_capture[capture] = self._decode(capture, run, is_truncated)
        return [[by_capture[capture][row] for capture in request.captures] for row, request in enumerate(requests)]

    def _decode(self, capture: Capture, run: StepCapture, is_truncated: list[bool]) -> list[GeneratedImage]:
        """A capture's image of each prompt, possibly including prompts that don't request this capture."""
        with self.timed("decoding") as decoding:
            pixels, finite = self._to_pixels(run.latents[capture])
        bad_steps = run.first_bad_steps()
        images = []
        for row, is_prompt_truncated in enumerate(is_truncated):
            failure = self._why_bad(capture, pixels[row], bad_steps[row], finite[row])
            if failure:
                images.append(self._failed(capture, failure))
                continue
            columns = {
                **self._blank(capture),
                "status": "ok",
                "prompt_truncated": is_prompt_truncated,
                "timestep": run.timesteps[capture.step],
                "sigma": run.sigmas[capture.step],
                "denoise_seconds": run.seconds[capture.step] / len(is_truncated),
                "decode_seconds": decoding.seconds / len(pixels),
            }
            images.append(GeneratedImage(columns, pixels[row]))
        return images

    def _to_pixels(self, latents: torch.Tensor) -> tuple[np.ndarray, list[bool]]:
        """Decode, as many images at a time as fit; what `decode_to_uint8` returns."""
        while True:
            try:
                return pipelines.decode_to_uint8(self.model, latents, self._sizer.decode_size)
            except Exception as error:
                if not self._sizer.on_error(error, "decode"):
                    raise
            if self._sizer.is_tiled:
                self.model.pipe.vae.enable_tiling()
            self.on_notice(self._describe_decoding())

    def _describe_decoding(self) -> str:
        if self._sizer.is_tiled:
            return (
                "ran out of memory while decoding one image, and decodes in tiles from now on, which changes pixels;"
                " for equal images set a smaller --height and --width, or use a GPU with more free memory"
            )
        return (
            f"ran out of memory while decoding, and decodes {self._sizer.decode_size} images at a time from now on"
            f" (low bits may differ); use --batch_size {self._sizer.decode_size} to start with as many"
        )

    def _encoded(self, image: GeneratedImage) -> dict[str, Any]:
        """The image's row, with its encoded file if it has pixels."""
        if image.pixels is None:
            return image.row
        try:
            with self.timed("encoding") as encoding:
                encoded = encode(image.pixels, self.recipe.image_format, self.recipe.image_quality)
        except Exception as error:
            return {**image.row, "status": "failed", "error_type": type(error).__name__, "error_message": str(error)}
        return {**image.row, "image": encoded, "encode_seconds": encoding.seconds}

    def _why_bad(self, capture: Capture, pixels: np.ndarray, bad_step: int | None, finite: bool) -> Failure | None:
        """Why an image is invalid, or None: diffusers would save it as black without an error."""
        if bad_step is not None and bad_step <= capture.step:
            return Failure("NonFiniteLatents", f"the latents are not finite from step {bad_step} on")
        if not finite:
            return Failure("NonFinitePixels", f"the decoded pixels of step {capture.step} are not finite")
        if capture.step == self.recipe.total_steps(capture) and pixels.min() == pixels.max():
            return Failure("FlatImage", f"the image of the last step has only one value, {pixels.min()}")
        return None

    def _denoise(
        self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]
    ) -> dict[Capture, StepCapture]:
        """Run the model up to the last requested step, or once per step count; returns each capture's run.

        The batch is padded with its last prompt to the fixed size.
        """
        if not 0 < len(prompts) <= self.batch_size:
            raise ValueError(f"{len(prompts)} prompts in a batch of {self.batch_size}")
        padding = self.batch_size - len(prompts)
        prompts, seeds = [*prompts, *[prompts[-1]] * padding], [*seeds, *[seeds[-1]] * padding]
        embeddings = [self._prompts.get(prompt).embeddings for prompt in prompts]
        runs: dict[int, list[Capture]] = {}
        for capture in captures:
            runs.setdefault(self.recipe.total_steps(capture), []).append(capture)
        taken: dict[Capture, StepCapture] = {}
        for steps, captures_of_run in runs.items():
            run = StepCapture(captures_of_run, steps, self._schedules.get(steps))
            with run.attached(self.model.pipe), self.timed("denoising"):
                pipelines.denoise(self.model, embeddings, list(seeds), steps, run)
            if missing := set(captures_of_run) - set(run.latents):
                ran = len(self.model.pipe.scheduler.timesteps)
                raise ModelError(f"the scheduler ran {ran} steps and never reached {sorted(missing)}")
            taken |= dict.fromkeys(captures_of_run, run)
        return taken

    def _try(self, steps: int) -> None:
        """Begin a run of `steps` steps twice, and decode it: what only shows at the first kernel shows here.

        Does not check the memory for a full batch: batches can be made smaller.

        Raises:
            ModelError: a run of `steps` steps fails, or does not depend on its seed alone.
            DeviceUnfit: the cause is the device, its driver, or what compiles for it.
        """
        name = type(self.model.pipe.scheduler).__name__
        latents: list[torch.Tensor] = []

        def stop(pipe: Any, index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
            self._schedules[steps] = schedule.read(pipe.scheduler, steps)
            latents.append(callback_kwargs["latents"])
            pipe._interrupt = True
            return callback_kwargs

        try:
            for _ in range(2):
                embeddings = [self._prompts.get("").embeddings] * self.batch_size
                pipelines.denoise(self.model, embeddings, [0] * self.batch_size, steps, stop)
            self._to_pixels(latents[-1])
            if self.recipe.device == "cuda":
                self.peak = torch.cuda.max_memory_reserved()
        except Exception as error:
            if self._sizer.on_error(error, "try"):
                self.peak = None
                return
            if device.is_device_error(error) or device.find_loss(self.probe):
                raise DeviceUnfit(device.describe(error)) from error
            raise ModelError(f"{self.recipe.model_path}: {steps} steps with {name}: {one_line(error)}") from error
        first, second = (each.float() for each in latents)
        is_same = (first - second).abs() <= SAME * first.abs().max()
        if not (is_same | first.isnan()).all():
            raise ModelError(
                f"{self.recipe.model_path}: {name} uses noise that no seed decides: an image could never be generated"
                " again; take another scheduler"
            )

    def _encode_prompt(self, prompt: str) -> EncodedPrompt:
        with self.timed("text encoding"):
            return EncodedPrompt(self.model.encode(prompt), self.model.is_truncated(prompt))

    def _blank(self, capture: Capture) -> dict[str, Any]:
        known = {"snapshot": capture.snapshot, "step": capture.step, "batch_size": self.batch_size}
        known |= {"num_inference_steps": self.recipe.total_steps(capture)}
        return {**dict.fromkeys(OUTPUT_COLUMNS), **known, "width": self.recipe.width, "height": self.recipe.height}

    def _failed(self, capture: Capture, failure: Failure) -> GeneratedImage:
        why = {"status": "failed", "error_type": failure.error_type, "error_message": failure.message}
        return GeneratedImage({**self._blank(capture), **why, "prompt_truncated": False}, None)


OUTPUT_COLUMNS = (
    "snapshot",
    "step",
    "num_inference_steps",
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
    pillow_format = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[image_format]
    options = {} if quality is None else {"quality": quality}
    with _memory_file() as file:
        Image.fromarray(pixels).save(file, format=pillow_format, **options)
        file.seek(0)
        return file.read()


def _memory_file() -> BinaryIO:
    """A file in memory. Where the system has such files, Pillow lets other threads run while it encodes into it."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("image"), "w+b")
    return io.BytesIO()
