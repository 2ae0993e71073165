"""actors.memory, on the allocator of this very machine. In a process of its own: a used heap has room to spare."""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from actors import memory
from tests.conftest import ROOT

PAGES = 64 * 2**20 // resource.getpagesize()
"""Of a tensor that is large for malloc: more than the 32 MiB up to which glibc learns to keep memory by itself."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def large_tensors(count: int) -> int:
    """Make so many, one after the other; the pages that the system had to provide."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held() -> int:
    """Pages of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def measure() -> None:
    """What the test below looks at, as JSON."""
    found = {"usual": large_tensors(32)}
    memory.keep_freed()
    large_tensors(8)
    found["kept"] = large_tensors(32)
    found["held_before"] = held()
    memory.give_back("cpu")
    found["held_after"] = held()
    print(json.dumps(found))


@glibc
def test_memory_of_freed_tensors_is_kept_until_it_is_short():
    code = "from tests.test_memory import measure; measure()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(run.stdout)
    assert found["usual"] >= 32 * PAGES
    assert found["kept"] < 16 * PAGES  # a small block may land where a large one was
    assert found["held_after"] <= found["held_before"] - PAGES * 0.9
