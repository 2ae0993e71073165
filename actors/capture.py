"""StepCapture: the step-end callback that keeps the latents of the requested steps and stops after the last one.
Knows schedulers and latents, nothing of prompts, decoding or files."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from actors import schedule
from actors.recipe import FLOW_MATCH, RETURNS_X0, Capture
from actors.schedule import Schedule
from actors.timing import Stopwatch


class StepCapture:
    """Pass as `callback_on_step_end` inside `with capture.attached(pipe)` of a run of `num_inference_steps`.

    Afterwards `latents[capture]` holds a copy of the batch's latents (same shape and dtype as the pipeline's) of each
    requested capture; `timesteps[step]`, `sigmas[step]` (the noise left after the step; NaN where the scheduler has no
    sigmas) and `seconds[step]` (since the denoise began) describe the step. Every step's largest value is kept, so that
    `first_bad_steps` can tell when a sample went wrong.

    On a GPU nothing here waits for it before the run has ended, given the run's schedule.

    Args:
        schedule: of such a run, where it is known; else the first step reads it.
    """

    def __init__(self, captures: Iterable[Capture], num_inference_steps: int, schedule: Schedule | None = None):
        self.captures = set(captures)
        self.num_inference_steps = num_inference_steps
        self.steps = {capture.step for capture in self.captures}
        self.latents: dict[Capture, torch.Tensor] = {}
        self.timesteps: dict[int, float] = {}
        self.sigmas: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        self._largest: list[torch.Tensor] = []
        self._first_bad_steps: list[int | None] | None = None
        self._x0: torch.Tensor | None = None
        self._calls = 0
        self._schedule = schedule

    @contextlib.contextmanager
    def attached(self, pipe: Any) -> Iterator["StepCapture"]:
        """Watch the pipeline's scheduler while a denoise runs. Its output is not changed."""
        self._stopwatch = Stopwatch(pipe.device)
        if any(capture.snapshot == "x0" for capture in self.captures):
            pipe.scheduler.step = self._watch(pipe.scheduler, pipe.scheduler.step)
        try:
            yield self
        finally:
            vars(pipe.scheduler).pop("step", None)  # the instance attribute; the class's method is visible again
        self.seconds = self._stopwatch.read()

    def __call__(self, pipe: Any, step_index: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        latents = callback_kwargs["latents"]
        if self._schedule is None:
            self._schedule = schedule.read(pipe.scheduler, self.num_inference_steps)
        step = len(self._largest) + 1
        if step_index + 1 < self._schedule.ends[step - 1]:
            return callback_kwargs  # the model is called again before this step ends
        self._largest.append(latents.flatten(1).abs().amax(1))  # read at the end: until then no GPU has to wait
        if step in self.steps:
            if Capture(step, "xt") in self.captures:
                self.latents[Capture(step, "xt")] = latents.clone()
            if Capture(step, "x0") in self.captures:
                assert self._x0 is not None
                self.latents[Capture(step, "x0")] = self._x0.to(latents.dtype)
            self._stopwatch.mark(step)
            self.timesteps[step] = self._schedule.timestep(step)
            self.sigmas[step] = self._schedule.sigma(step)
            if step == max(self.steps):
                pipe._interrupt = True  # the pipeline skips what is left and returns these latents
        return callback_kwargs

    def first_bad_steps(self) -> list[int | None]:
        """For each sample of the batch the first step whose latents are not finite, None if all are."""
        if self._first_bad_steps is None:
            finite = torch.isfinite(torch.stack(self._largest)).cpu()  # (steps, samples)
            self._first_bad_steps = [None if sample.all() else int(sample.int().argmin()) + 1 for sample in finite.T]
        return self._first_bad_steps

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
