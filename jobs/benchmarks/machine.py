"""What a benchmark ran on: cores, processor, memory, GPU, and that GPU's utilization.
Knows where a machine reports these; nothing of what is measured."""

import os
import platform
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from ray_app.machine import query_gpus

SAMPLE_SECONDS = 0.2


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """What the report says about the machine; `load` is the present one: other work makes the figures worthless."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": cores(),
        "cpu": _cpu(),
        "memory_gb": round(memory / 1e9, 1),
        "gpu": gpu_name(),
        "load": round(os.getloadavg()[0], 2),
    }


def gpu_name() -> str | None:
    """The first CUDA GPU's name, None without one."""
    gpus = query_gpus("name")
    return gpus[0][0] if gpus else None


class GpuBusy:
    """Samples the first GPU's utilization (of `nvidia-smi`) inside a `with`; nothing without a GPU."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "GpuBusy":
        if gpu_name():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def percent(self, began: float, ended: float) -> float | None:
        """The mean between two moments; None if nothing was sampled there."""
        seen = [busy for moment, busy in self._samples if began <= moment <= ended]
        return round(statistics.fmean(seen), 1) if seen else None

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for (busy,) in query_gpus("utilization.gpu")[:1]:
                self._samples.append((time.time(), float(busy)))


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
