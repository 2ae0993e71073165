"""StepCapture: the step-end callback that keeps the latents of the requested steps and stops after the last one.
Knows schedulers and latents, nothing of prompts, decoding or files."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from actors.errors import ModelError
from actors.recipe import FLOW_MATCH, RETURNS_X0, Capture


class StepCapture:
    """Pass as `callback_on_step_end` inside `with capture.attached(pipe)` of a run of `num_inference_steps`.

    Afterwards `latents[capture]` holds a copy of the batch's latents (same shape and dtype as the pipeline's) of each
    requested capture; `timesteps[step]`, `sigmas[step]` (the noise left after the step; NaN where the scheduler has no
    sigmas) and `seconds[step]` (since the denoise began) describe the step. Every step's largest value is kept, so that
    `first_bad_steps` can tell when a sample went wrong.
    """

    def __init__(self, captures: Iterable[Capture], num_inference_steps: int):
        self.captures = set(captures)
        self.num_inference_steps = num_inference_steps
        self.steps = {capture.step for capture in self.captures}
        self.latents: dict[Capture, torch.Tensor] = {}
        self.timesteps: dict[int, float] = {}
        self.sigmas: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        self._largest: list[torch.Tensor] = []
        self._x0: torch.Tensor | None = None
        self._calls = 0
        self._ends: list[int] = []
        self._started = 0.0

    @contextlib.contextmanager
    def attached(self, pipe: Any) -> Iterator["StepCapture"]:
        """Watch the pipeline's scheduler while a denoise runs. Its output is not changed."""
        self._started = time.perf_counter()
        if not any(capture.snapshot == "x0" for capture in self.captures):
            yield self
            return
        step = pipe.scheduler.step
        pipe.scheduler.step = self._watch(pipe.scheduler, step)
        try:
            yield self
        finally:
            del pipe.scheduler.step  # the instance attribute; the class's method is visible again

    def __call__(self, pipe: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        latents = callback_kwargs["latents"]
        if step_index == 0:
            self._ends = step_ends(pipe.scheduler, self.num_inference_steps)
        step = len(self._largest) + 1
        if step_index + 1 < self._ends[step - 1]:
            return callback_kwargs  # the model is called again before this step ends
        self._largest.append(latents.flatten(1).abs().amax(1))  # read at the end: until then no GPU has to wait
        if step in self.steps:
            if Capture(step, "xt") in self.captures:
                self.latents[Capture(step, "xt")] = latents.clone()
            if Capture(step, "x0") in self.captures:
                assert self._x0 is not None
                self.latents[Capture(step, "x0")] = self._x0.to(latents.dtype)
            self._describe(pipe.scheduler, step, latents)
            if step == max(self.steps):
                pipe._interrupt = True  # the pipeline skips what is left and returns these latents
        return callback_kwargs

    def first_bad_steps(self) -> list[int | None]:
        """For each sample of the batch the first step whose latents are not finite, None if all are."""
        finite = torch.isfinite(torch.stack(self._largest)).cpu()  # (steps, samples)
        return [None if sample.all() else int(sample.int().argmin()) + 1 for sample in finite.T]

    def _describe(self, scheduler: Any, step: int, latents: torch.Tensor) -> None:
        if latents.is_cuda:
            torch.cuda.synchronize(latents.device)  # only at requested steps: otherwise the clock reads launch times
        self.seconds[step] = time.perf_counter() - self._started
        began = self._ends[step - 2] if step > 1 else 0  # calls before this step
        self.timesteps[step] = float(scheduler.timesteps[began])
        sigmas = getattr(scheduler, "sigmas", None)
        self.sigmas[step] = math.nan if sigmas is None else float(sigmas[self._ends[step - 1]])

    def _watch(self, scheduler: Any, step: Callable[..., Any]) -> Callable[..., Any]:
        name = type(scheduler).__name__
        if name not in RETURNS_X0 | FLOW_MATCH:
            raise ValueError(f"{name} gives no predicted clean image (x0)")

        # wraps() keeps the signature: without it the pipeline, which checks it, silently drops the generators
        @functools.wraps(step)
        def watched(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            is_requested = Capture(self._calls, "x0") in self.captures
            if is_requested and name in FLOW_MATCH:
                sigma = scheduler.sigmas[self._calls - 1]  # read before the call: it moves the scheduler on
                self._x0 = sample.float() - sigma * model_output.float()
            result = step(model_output, timestep, sample, *args, **kwargs)
            if is_requested and name in RETURNS_X0:
                self._x0 = result[1] if isinstance(result, tuple) else result.pred_original_sample
            return result

        return watched


def step_ends(scheduler: Any, steps: int) -> list[int]:
    """For each step of a run, the number of model calls after which it ends.

    A step leads from a noise level of the requested schedule to the next. Most schedulers call the model once
    for that; second-order ones twice except for the last step; PNDM without Runge-Kutta steps does the first one twice.

    Args:
        scheduler: with the timesteps of the run set, one per call.

    Raises:
        ModelError: the scheduler runs another number of steps than requested, or one call serves several steps.
    """
    timesteps = scheduler.timesteps.tolist()
    calls = len(timesteps)
    if calls == steps:
        return list(range(1, steps + 1))
    if calls == 2 * steps - 1 and scheduler.order == 2:
        return [*range(2, calls, 2), calls]
    levels = list(dict.fromkeys(timesteps))
    if len(levels) == steps and calls == steps + 1:
        last = {timestep: call for call, timestep in enumerate(timesteps)}
        return [*(last[level] for level in levels[1:]), calls]
    raise ModelError(
        f"{type(scheduler).__name__} calls the model {calls} times for {steps} steps, so that no single steps can be"
        " captured; use another number of steps or another scheduler"
    )
