"""How fast a GPU is: as the probe found it, or as it is assumed by the work.
Knows seconds per image; nothing of what is measured with them."""

import dataclasses
from typing import Any

TFLOP = {("sdxl", 512): (1.589, 2.515), ("sdxl", 1024): (5.98, 10.1), ("flux", 512): (17.69, 2.515)}
TFLOP |= {("flux", 1024): (69.5, 10.1)}
"""Work of a denoising step and of a decode per image; those at 1024 px are extrapolated."""
TFLOP_PER_SECOND = 250.0
"""Assumed of a GPU that was not probed yet."""
START_SECONDS = 10.0
"""A guess: a process starts and imports torch and diffusers."""
LOAD_SECONDS = {"sdxl": 15.0, "flux": 25.0}
"""Likewise: a full-size model of random weights is built."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Seconds per image: a step and a decode, alone and in a batch; and seconds until a process can generate."""

    step_alone: float
    step: float
    decode_alone: float
    decode: float
    load: float
    batch_size: int


def assumed_rates(model_type: str, pixels: int, batch_size: int) -> Rates:
    """By the work, for a GPU that was not probed."""
    step, decode = (tflop / TFLOP_PER_SECOND for tflop in TFLOP[model_type, pixels])
    return Rates(step, step, decode, decode, START_SECONDS + LOAD_SECONDS[model_type], batch_size)


def probed_rates(probe: dict[str, Any], model_type: str, pixels: int, batch_size: int) -> Rates:
    """As the probe found them; what it lacks as it is assumed."""
    cases = {case["batch_size"]: case for case in probe["cases"] if case["pixels"] == pixels and "step_ms" in case}
    load = START_SECONDS + probe["load_seconds"]
    rates = dataclasses.replace(assumed_rates(model_type, pixels, batch_size), load=load)
    if batch_size in cases:
        case, alone = cases[batch_size], cases.get(1, cases[batch_size])
        rates = dataclasses.replace(
            rates,
            step_alone=alone["step_ms"] / 1000,
            step=case["step_ms"] / 1000,
            decode_alone=alone["decode_ms"] / 1000,
            decode=case["decode_ms"] / 1000,
        )
    return rates
