"""actors.memory, on the allocator of this very machine. In a process of its own: a used heap has room to spare."""

import ctypes
import errno
import json
import platform
import resource
import threading
import weakref
from pathlib import Path

import pytest

from actors import memory
from tests.conftest import run_python

PAGES = 64 * 2**20 // resource.getpagesize()
"""Of a tensor that is large for malloc: more than the 32 MiB up to which glibc learns to keep memory by itself."""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")


def large_tensors(count: int) -> int:
    """Make so many, one after the other; the pages that the system had to provide."""
    import torch  # here alone: most of what is run in a process of its own needs none

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held() -> int:
    """Pages of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def show_heaps(shared: bool) -> None:
    """What glibc tells of this process's heaps, on stdout, before four threads allocate at once and after."""
    libc, together = ctypes.CDLL(None), threading.Barrier(4)
    libc.malloc.restype = ctypes.c_void_p

    def allocate() -> None:
        libc.malloc(1_000)
        together.wait()  # one that has ended leaves its heap to the next

    def tell() -> None:
        libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
        libc.fflush(None)

    if shared:
        memory.share_heaps()
    tell()
    threads = [threading.Thread(target=allocate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell()


def measure() -> None:
    """What the test below looks at, as JSON."""
    found = {"usual": large_tensors(32)}
    memory.keep_freed()
    large_tensors(8)
    found["kept"] = large_tensors(32)
    found["held_before"] = held()
    memory.release_free_memory("cpu")
    found["held_after"] = held()
    print(json.dumps(found))


def alone(call: str) -> str:
    """What a function of this file prints in a process of its own."""
    return run_python(f"from tests.actors.test_memory import *; {call}")


@glibc
def test_memory_of_freed_tensors_is_kept_until_it_is_short():
    found = json.loads(alone("measure()"))
    assert found["usual"] >= 32 * PAGES
    assert found["kept"] < 16 * PAGES  # a small block may land where a large one was
    assert found["held_after"] <= found["held_before"] - PAGES * 0.9


@glibc
@pytest.mark.parametrize(("shared", "new"), [(False, 4), (True, 0)])
def test_threads_get_heaps_of_their_own_unless_they_share(shared, new):
    before, after, _ = alone(f"show_heaps({shared})").split("</malloc>")
    assert after.count("<heap nr=") - before.count("<heap nr=") == new


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:126] err == 0. DefaultCPUAllocator: can't allocate memory",
        "could not create a primitive",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_errors_of_the_libraries_below_torch_that_mean_too_little_memory(message):
    assert memory.is_out_of_memory(RuntimeError(message))
    assert not memory.is_out_of_memory(ValueError(message))  # a prompt's own words, say


def test_what_torch_and_python_raise_for_too_little_memory():
    import torch

    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    for error in (raised.value, torch.OutOfMemoryError(), MemoryError()):
        assert memory.is_out_of_memory(error)


NO_MEMORY = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("stage", "error", "sizes"),
    [
        ("batch", NO_MEMORY, [(True, 3), (True, 1), (False, 1)]),
        ("try", NO_MEMORY, [(True, 7), (True, 7), (True, 7)]),
        ("batch", IndexError("index out of range in self"), [(False, 7), (False, 7), (False, 7)]),
        ("try", IndexError("index out of range in self"), [(False, 7), (False, 7), (False, 7)]),
    ],
)
def test_batches_are_halved_when_memory_runs_out_and_only_then(stage, error, sizes, monkeypatch):
    monkeypatch.setattr(memory, "release_free_memory", lambda device: None)  # it changes this process's allocator
    sizer = memory.BatchSizer(7, "cpu")
    assert [(sizer.on_error(error, stage), sizer.size) for _ in sizes] == sizes


def test_less_is_decoded_at_a_time_and_at_last_in_tiles(monkeypatch):
    monkeypatch.setattr(memory, "release_free_memory", lambda device: None)
    sizer = memory.BatchSizer(7, "cpu", decode_size=3)
    found = [(sizer.on_error(NO_MEMORY, "decode"), sizer.decode_size, sizer.is_tiled) for _ in range(3)]
    assert found == [(True, 1, False), (True, 1, True), (False, 1, True)]
    assert sizer.size == 7


def test_what_a_failed_batch_held_is_freed_before_the_next_is_tried(monkeypatch):
    """Also what functions held whose error is the cause of another."""
    released: list[bool] = []

    class Tensors:
        """Something that a weak reference can point to."""

    def denoise() -> None:
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        raise MemoryError

    def generate() -> None:
        tensors = Tensors()
        held.append(weakref.ref(tensors))
        try:
            denoise()
        except MemoryError as error:
            raise RuntimeError("could not create a primitive") from error

    held: list[weakref.ref] = []
    monkeypatch.setattr(memory, "release_free_memory", lambda device: released.append(not any(ref() for ref in held)))
    with pytest.raises(RuntimeError) as raised:
        generate()
    assert all(ref() for ref in held)
    assert memory.BatchSizer(2, "cpu").on_error(raised.value, "batch")
    assert released == [True]


def test_every_lack_of_memory_has_one_name():
    for error in (NO_MEMORY, MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert memory.error_type(error) == "OutOfMemory"
    assert memory.error_type(ValueError("no")) == "ValueError"


@pytest.mark.parametrize("message", ["CUDA error: device-side assert triggered", "index out of range in self", ""])
def test_other_errors_are_no_lack_of_memory(message):
    assert not memory.is_out_of_memory(RuntimeError(message))
