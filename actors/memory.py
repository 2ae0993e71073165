"""Memory of a process: kept between layers where it draws on CPUs, found to be short, given back when it is.
Knows the C library's allocator and torch's; nothing of pipelines."""

import ctypes
import errno
import gc
from collections.abc import Iterable

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"""glibc's numbers of its malloc's settings, all but the last in bytes."""
KEEP_FREED = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
GLIBC_DEFAULTS = ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**26), (M_TOP_PAD, 2**17))
"""Where glibc's own settings end up when large blocks are freed; to compare with."""
RETURN_FREED = ((M_MMAP_THRESHOLD, 2**17), (M_TRIM_THRESHOLD, 2**17), (M_TOP_PAD, 0))

OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "could not create a primitive",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
)
"""What a RuntimeError says where memory is what is missing: torch's CPU allocator, oneDNN, CUDA, cuBLAS and cuDNN."""


def keep_freed() -> None:
    """Let the C library, where it is glibc, keep the memory of freed tensors for the next ones.

    It would hand large blocks back to the system, which then clears every page anew at each layer.
    """
    set_mallopt(KEEP_FREED)


def share_heaps() -> None:
    """Let threads that start from now on share the heaps that are there, where the C library is glibc.

    It would make one for each, up to eight a core. What is freed in one is not used in another, so that a process that
    passes rows from thread to thread would grow with them.
    """
    set_mallopt([(M_ARENA_MAX, 1)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the GPU or of the host: said by this error, or by one that led to it.

    torch and the libraries below raise a plain RuntimeError, and the system an OSError where a file is mapped.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_TEXTS):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and is_out_of_memory(before)


def release_free_memory(device: str) -> None:
    """Give what is free to the system, and on CPUs from now on at once: a smaller batch needs pieces of other sizes."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    else:
        set_mallopt(RETURN_FREED)
        if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            malloc_trim(0)


def set_mallopt(settings: Iterable[tuple[int, int]]) -> None:
    """Set these of glibc's malloc, for the whole process; nothing where it is not glibc."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for number, size in settings:
            mallopt(number, size)
