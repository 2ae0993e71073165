"""Memory of a process: kept between layers on CPUs; when it is exhausted, released for smaller batches.
Knows the C library's allocator and torch's; nothing of pipelines."""

import ctypes
import errno
import gc
import traceback
from collections.abc import Iterable
from typing import Literal

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
"""glibc's numbers of the settings of its malloc, all but the last in bytes."""
KEEP_FREED = ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26))
GLIBC_DEFAULTS = ((M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**26), (M_TOP_PAD, 2**17))
"""The values that glibc's own settings reach once large blocks have been freed; for comparison."""
RETURN_FREED = ((M_MMAP_THRESHOLD, 2**17), (M_TRIM_THRESHOLD, 2**17), (M_TOP_PAD, 0))

DECODE_PIXELS = 2**21
"""Pixels decoded at a time on a GPU: eight images of 512 px or two of 1024 px, 6.4 GB of float32 activations."""

Stage = Literal["try", "batch", "decode"]
"""What an error ends: the first try of a model, a batch of prompts, or the decoding of some images."""

OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "could not create a primitive",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its handle wants memory of its own
    "unable to find an engine",  # cuDNN has one that needs less, if any fits
)
"""What a RuntimeError says if memory ran out: of torch's CPU allocator, oneDNN, CUDA, cuBLAS and cuDNN."""


def keep_freed() -> None:
    """Let the C library, where it is glibc, keep the memory of freed tensors for the next ones.

    By default it returns large blocks to the system, which then clears every page again at each layer.
    """
    set_mallopt(KEEP_FREED)


def share_heaps() -> None:
    """Let threads that start from now on share the existing heaps, if the C library is glibc.

    By default it creates a heap per thread, up to eight per core. Memory that is freed in one heap is not used by
    another, so that a process that passes rows from thread to thread would grow with them.
    """
    set_mallopt([(M_ARENA_MAX, 1)])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one of its causes, means that memory ran out, of the GPU or of the host.

    torch and the libraries below raise a plain RuntimeError, and the system an OSError where a file is mapped.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_TEXTS):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_out_of_memory(cause)


def error_type(error: BaseException) -> str:
    """An error's class as the index has it; "OutOfMemory" for all that lack of memory is raised as."""
    return "OutOfMemory" if is_out_of_memory(error) else type(error).__name__


class BatchSizer:
    """How much is done at a time: half as much whenever memory runs out, and never more again.

    Args:
        size: prompts that are denoised together at first.
        device: "cuda" or "cpu".
        decode_size: images that are decoded at a time at first; None for all of a batch.
    """

    def __init__(self, size: int, device: str, decode_size: int | None = None):
        self.size, self.device = size, device
        self.decode_size = min(size, decode_size or size)
        self.is_tiled = False
        """Whether an image is decoded in parts, since not even one fitted."""

    def on_error(self, error: BaseException, stage: Stage) -> bool:
        """Whether the work can continue after an error: memory ran out, and less at a time may fit.

        What the failed work held is freed and returned to the system. Call it where the error is handled, and retry
        the work after that, outside of the handler.

        Args:
            stage: after a failed try of the model the batches decide whether to become smaller; a failed batch is
                halved, unless it has a single prompt; after a failed decoding half as many images are decoded at a
                time, and a single image in tiles.
        """
        if not is_out_of_memory(error):
            return False
        _clear_frames(error)
        release_free_memory(self.device)
        if stage == "try":
            return True
        if stage == "decode":
            return self._decode_less()
        if self.size == 1:
            return False
        self.size //= 2
        self.decode_size = min(self.decode_size, self.size)
        return True

    def _decode_less(self) -> bool:
        if self.decode_size > 1:
            self.decode_size //= 2
            return True
        could_be_tiled = not self.is_tiled
        self.is_tiled = True
        return could_be_tiled


def _clear_frames(error: BaseException | None) -> None:
    """Release what was held by the functions that an error, or one of its causes, has ended: a batch's tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def release_free_memory(device: str) -> None:
    """Return free memory to the system, on CPUs also from now on: a smaller batch needs blocks of other sizes."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    else:
        set_mallopt(RETURN_FREED)
        if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            malloc_trim(0)


def set_mallopt(settings: Iterable[tuple[int, int]]) -> None:
    """Change settings of glibc's malloc for the whole process; does nothing with another C library."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for number, size in settings:
            mallopt(number, size)
