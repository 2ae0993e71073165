"""StepCapture: the step-end callback that keeps the latents of the wanted steps and stops after the last.
Knows schedulers and latents, nothing of prompts, decoding or files."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from actors.recipe import FLOW_MATCH, RETURNS_X0, Capture


class StepCapture:
    """Pass as `callback_on_step_end` inside `with capture.attached(pipe)`.

    Afterwards `latents[capture]` holds a copy of the batch's latents (same shape and dtype as the pipeline's) of each
    wanted capture; `timesteps[step]`, `sigmas[step]` (the noise left after the step; NaN where the scheduler has no
    sigmas) and `seconds[step]` (since the denoise began) describe the step. Every step's largest value is kept, so that
    `first_bad_steps` can tell when a sample went wrong.
    """

    def __init__(self, wanted: Iterable[Capture]):
        self.wanted = set(wanted)
        self.steps = {capture.step for capture in self.wanted}
        self.latents: dict[Capture, torch.Tensor] = {}
        self.timesteps: dict[int, float] = {}
        self.sigmas: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        self._largest: list[torch.Tensor] = []
        self._x0: torch.Tensor | None = None
        self._calls = 0
        self._started = 0.0

    @contextlib.contextmanager
    def attached(self, pipe: Any) -> Iterator["StepCapture"]:
        """Watch the pipeline's scheduler while a denoise runs. Its output is not changed."""
        self._started = time.perf_counter()
        if not any(capture.snapshot == "x0" for capture in self.wanted):
            yield self
            return
        step = pipe.scheduler.step
        pipe.scheduler.step = self._watch(pipe.scheduler, step)
        try:
            yield self
        finally:
            del pipe.scheduler.step  # the instance attribute; the class's method shows again

    def __call__(self, pipe: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        step = step_index + 1
        latents = callback_kwargs["latents"]
        self._largest.append(latents.flatten(1).abs().amax(1))  # read at the end: until then no GPU has to wait
        if step in self.steps:
            if Capture(step, "xt") in self.wanted:
                self.latents[Capture(step, "xt")] = latents.clone()
            if Capture(step, "x0") in self.wanted:
                assert self._x0 is not None
                self.latents[Capture(step, "x0")] = self._x0.to(latents.dtype)
            self._describe(pipe.scheduler, step, timestep, latents)
            if step == max(self.steps):
                pipe._interrupt = True  # the pipeline skips what is left and returns these latents
        return callback_kwargs

    def first_bad_steps(self) -> list[int | None]:
        """For each sample of the batch the first step whose latents are not finite, None if all are."""
        finite = torch.isfinite(torch.stack(self._largest)).cpu()  # (steps, samples)
        return [None if sample.all() else int(sample.int().argmin()) + 1 for sample in finite.T]

    def _describe(self, scheduler: Any, step: int, timestep: Any, latents: torch.Tensor) -> None:
        if latents.is_cuda:
            torch.cuda.synchronize(latents.device)  # only at wanted steps: otherwise the clock reads launch times
        self.seconds[step] = time.perf_counter() - self._started
        self.timesteps[step] = float(timestep)
        sigmas = getattr(scheduler, "sigmas", None)
        self.sigmas[step] = math.nan if sigmas is None else float(sigmas[step])

    def _watch(self, scheduler: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        name = type(scheduler).__name__
        if name not in RETURNS_X0 | FLOW_MATCH:
            raise ValueError(f"{name} gives no predicted clean image (x0)")

        # wraps() keeps the signature: without it the pipeline's check of it drops the generators silently
        @functools.wraps(step)
        def watched(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            wanted = Capture(self._calls, "x0") in self.wanted
            if wanted and name in FLOW_MATCH:
                sigma = scheduler.sigmas[self._calls - 1]  # read before the call: it moves the scheduler on
                self._x0 = sample.float() - sigma * model_output.float()
            result = step(model_output, timestep, sample, *args, **kwargs)
            if wanted and name in RETURNS_X0:
                self._x0 = result[1] if isinstance(result, tuple) else result.pred_original_sample
            return result

        return watched
