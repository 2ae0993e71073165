"""actors.memory, on the allocator of this very machine."""

import platform
import resource
from collections.abc import Callable

import pytest
import torch

from actors import memory

PAGES = 64 * 2**20 // resource.getpagesize()
"""Of a tensor that is large for malloc: more than 32 MiB, where glibc stops to learn."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def faults(settings: Callable[[], None]) -> int:
    """Pages that the system had to provide while 32 large tensors were made, one after the other."""
    settings()
    for _ in range(8):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(32):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_memory_of_freed_tensors_is_kept_until_it_is_short():
    try:
        assert faults(lambda: memory.use(memory.USUAL)) >= 32 * PAGES
        assert faults(memory.keep_freed) < 16 * PAGES  # a small block may land where a large one was
        assert faults(lambda: memory.give_back("cpu")) >= 32 * PAGES
    finally:
        memory.use(memory.USUAL)


@glibc
def test_giving_back_lowers_what_the_process_holds():
    def held() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    try:
        memory.keep_freed()
        torch.ones(64 * 2**20, dtype=torch.uint8)
        kept = held()
        memory.give_back("cpu")
        assert held() <= kept - PAGES * 0.9
    finally:
        memory.use(memory.USUAL)
