"""The pieces of a measurement, the most valuable first: the command of each, and the seconds that it is planned for.
Knows commands and arithmetic; runs nothing."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any, Literal

from jobs.benchmarks.gpu.rates import Rates
from jobs.benchmarks.work import DUPLICATES

Kind = Literal["smoke", "resume", "probe", "speed"]

STEPS, SAVED, SEPARATE_STEPS = 32, 5, 61
"""Steps of a denoising pass, its saved images, and the steps of a separate run per saved image."""
RAY_SECONDS, WARM_UP_SECONDS, COMPILE_SECONDS = 12.0, 4.0, 90.0
"""Guesses: starting Ray or Ray Data's actors, a variant's warm-up, compiling a denoiser's blocks."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much a speed benchmark measures."""

    prompts: int
    rounds: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """One command of the measurement; it fails or is left out without costing another.

    Args:
        kind: what it runs: a check, the probe, or the speed benchmark.
        pixels: height and width of its images.
        variants, levers, flags: of the speed benchmark.
        sizes: of the speed benchmark, the best first; the first one that fits is measured.
        guessed_seconds: of what has no sizes.
        is_tried: whether `--try` runs it too.
    """

    name: str
    kind: Kind
    model_type: str
    pixels: int = 512
    variants: tuple[str, ...] = ()
    levers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()
    guessed_seconds: float = 0.0
    is_tried: bool = False

    def command(self, size: Size | None, output: Path, is_try: bool) -> list[str]:
        """What to run; it writes its figures to `output` as JSON."""
        if self.kind == "speed":
            assert size
            arguments = [*self._speed(size, is_try), *self.flags]
        elif self.kind == "probe":
            arguments = ["jobs.benchmarks.gpu.probe", "--model_type", self.model_type]
        else:
            arguments = ["jobs.benchmarks.gpu.checks", "--check", self.kind, "--model_type", self.model_type]
        tiny = ["--try"] if is_try and self.kind != "speed" else []
        return [sys.executable, "-m", *arguments, *tiny, "--output", str(output)]

    def least_seconds(self, rates: Rates) -> float:
        """How long its smallest size will take."""
        return self.seconds(self.sizes[-1] if self.sizes else None, rates)

    def _speed(self, size: Size, is_try: bool) -> list[str]:
        arguments = ["jobs.benchmarks.speed", "--model_type", self.model_type]
        if is_try:
            arguments += ["--model", "tiny", "--max_inference_steps", "2", "--arrangement", "processes"]
            arguments += ["--num_workers", "1"]
            size = Size(prompts=3, rounds=1)
        else:
            arguments += ["--model", "full", "--height", str(self.pixels), "--width", str(self.pixels)]
        arguments += ["--variants", *self.variants, *(["--levers", *self.levers] if self.levers else [])]
        return [*arguments, "--prompts", str(size.prompts), "--rounds", str(size.rounds)]

    def seconds(self, size: Size | None, rates: Rates) -> float:
        """How long it will take, about."""
        if size is None:
            return self.guessed_seconds
        unique = size.prompts - round(size.prompts * DUPLICATES)
        pass_alone = STEPS * rates.step_alone + SAVED * rates.decode_alone
        pass_in_batch = STEPS * rates.step + SAVED * rates.decode
        in_batches = math.ceil(unique / rates.batch_size) * rates.batch_size * pass_in_batch
        on_ray = RAY_SECONDS + rates.load
        of_variant = {
            "separate": size.prompts * (SEPARATE_STEPS * rates.step_alone + SAVED * rates.decode_alone),
            "callback": size.prompts * (pass_alone + rates.decode_alone),
            "ray_data": size.prompts * pass_in_batch + on_ray,
            "proxyqueue": in_batches + on_ray,
            "batch_of_one": unique * pass_alone,
        }
        names = (*self.variants, *self.levers)
        round_ = sum(of_variant.get(name, in_batches) + WARM_UP_SECONDS for name in names)
        once = rates.load + RAY_SECONDS + COMPILE_SECONDS * ("compiled" in names)
        return once + size.rounds * round_


def _speed(name: str, model_type: str, variants: str, *sizes: tuple[int, int], levers: str = "", **more: Any) -> Piece:
    more |= {"variants": (*variants.split(),), "levers": (*levers.split(),)}
    return Piece(name, "speed", model_type, sizes=tuple(Size(*size) for size in sizes), **more)


TARGETS = "callback ray_data proxyqueue limit"
LONG = "proxyqueue limit"
"""Longer: a run's first batch, which loads kernels, counts for less in it."""
PIECES = (
    Piece("smoke_sdxl", "smoke", "sdxl", guessed_seconds=75, is_tried=True),
    Piece("probe_sdxl", "probe", "sdxl", guessed_seconds=80, is_tried=True),
    _speed("speed_sdxl_512", "sdxl", TARGETS, (42, 3), (42, 2), (25, 2), is_tried=True),
    Piece("resume_sdxl", "resume", "sdxl", guessed_seconds=100, is_tried=True),
    Piece("smoke_flux", "smoke", "flux", guessed_seconds=75),
    Piece("probe_flux", "probe", "flux", guessed_seconds=100),
    _speed("speed_flux_512", "flux", TARGETS, (21, 2), (21, 1), (13, 1), (8, 1)),
    _speed("long_sdxl_512", "sdxl", LONG, (337, 1), (168, 1), (84, 1)),
    # alone: what can't be compiled ends the whole benchmark
    _speed("compiled_sdxl", "sdxl", "limit", (17, 2), (8, 1), levers="compiled"),
    _speed("compiled_flux", "flux", "limit", (13, 2), (8, 1), levers="compiled"),
    _speed("vae_sdxl", "sdxl", "limit", (17, 2), (8, 1), levers="vae_float16 vae_bfloat16", is_tried=True),
    _speed("speed_sdxl_1024", "sdxl", TARGETS, (25, 2), (17, 1), (8, 1), pixels=1024),
    _speed("long_flux_512", "flux", LONG, (84, 1), (42, 1), (21, 1)),
    _speed("speed_flux_1024", "flux", "callback proxyqueue limit", (8, 1), (5, 1), pixels=1024),
    _speed("levers_sdxl", "sdxl", "limit", (17, 2), (8, 1), levers="channels_last fused_qkv batch_of_one"),
    _speed("separate_sdxl_512", "sdxl", "separate proxyqueue", (25, 2), (17, 1), (8, 1)),
    _speed("levers_flux", "flux", "limit", (8, 1), (5, 1), levers="fused_qkv batch_of_one"),
    _speed("separate_flux_512", "flux", "separate proxyqueue", (8, 1), (5, 1)),
    _speed("separate_sdxl_1024", "sdxl", "separate proxyqueue", (8, 1), pixels=1024),
    _speed("separate_flux_1024", "flux", "separate proxyqueue", (4, 1), pixels=1024),
)
"""Numbers of prompts are such that the unique ones fill whole batches, of 8 for SDXL and of 4 for Flux at 512 px."""
