"""A run's schedule: how often the model is called for each step, and the noise levels that lead from one to the next.
Read once per number of steps: reading from a scheduler's tensors makes a GPU wait."""

import dataclasses
import math
from typing import Any

from actors.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps of a run, each 1-based.

    Attributes:
        ends: for each step how often the model has been called when it is done, see `step_ends`.
        timesteps: one per call.
        sigmas: the noise levels, one per call and one after the last; None where the scheduler has none.
    """

    ends: list[int]
    timesteps: list[float]
    sigmas: list[float] | None

    def timestep(self, step: int) -> float:
        """The timestep at which a step begins."""
        return self.timesteps[self.ends[step - 2] if step > 1 else 0]

    def sigma(self, step: int) -> float:
        """The noise that is left after a step; NaN where the scheduler has no sigmas."""
        return math.nan if self.sigmas is None else self.sigmas[self.ends[step - 1]]


def read(scheduler: Any, steps: int) -> Schedule:
    """The schedule of a run of this number of steps.

    Args:
        scheduler: with the timesteps of the run set, one a call.

    Raises:
        ModelError: the scheduler runs another number of steps than requested, or one call serves several steps.
    """
    timesteps = scheduler.timesteps.tolist()
    sigmas = getattr(scheduler, "sigmas", None)
    ends = step_ends(scheduler, timesteps, steps)
    return Schedule(ends, [float(timestep) for timestep in timesteps], None if sigmas is None else sigmas.tolist())


def step_ends(scheduler: Any, timesteps: list[Any], steps: int) -> list[int]:
    """For each step of a run, the number of model calls after which it ends.

    A step leads from a noise level of the requested schedule to the next. Most schedulers call the model once
    for that; second-order ones twice except for the last step; PNDM without Runge-Kutta steps does the first one twice.

    Raises:
        ModelError: the scheduler runs another number of steps than requested, or one call serves several steps.
    """
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
