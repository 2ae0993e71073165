"""Noise that a scheduler adds at each step reaches a GPU through pinned memory: from pageable memory the host waits.
Knows diffusers' name of the function that makes noise; the noise itself stays the same to the last bit."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def copied_without_waiting(scheduler: Any, device: str) -> Iterator[None]:
    """While a run denoises, copy its scheduler's noise asynchronously. Does nothing on CPUs.

    Schedulers that add noise (Euler ancestral, as SDXL turbo has it) draw it on the CPU, by each image's own generator,
    and would copy it with the whole queue of kernels drained: once per step.
    """
    module = sys.modules[type(scheduler).__module__]
    own = getattr(module, "randn_tensor", None)
    if device != "cuda" or own is None:
        yield
        return

    def randn_tensor(shape: Any, generator: Any = None, device: Any = None, **more: Any) -> torch.Tensor:
        noise = own(shape, generator=generator, device=torch.device("cpu"), **more)
        return noise.pin_memory().to(device, non_blocking=True)

    setattr(module, "randn_tensor", randn_tensor)  # noqa: B010
    try:
        yield
    finally:
        setattr(module, "randn_tensor", own)  # noqa: B010
