"""The device of a process: whether it still answers, and which errors are its own and not a model's or a prompt's.
Knows CUDA through torch; nothing of pipelines. A CPU always answers."""

import os
from collections.abc import Callable

import torch

from actors import memory

Probe = Callable[[], object]
"""Uses the device a little, and raises if it no longer answers."""

DEVICE_TEXTS = (
    "CUDA error",
    "CUDA driver",
    "NVIDIA driver",
    "no kernel image",
    "unspecified launch failure",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "C compiler",
    "Python.h",
)
"""What a RuntimeError says that comes from the device, its driver or what compiles for it."""


def set_deterministic(is_deterministic: bool) -> None:
    """Whether this process uses deterministic kernels only; call it before the device is first used.

    An operation that has none raises a RuntimeError.
    """
    if is_deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # else cuBLAS may choose another algorithm for each stream
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(is_deterministic)


def make_probe(device: str) -> Probe:
    """The probe of "cuda" or "cpu"."""
    return _probe_cuda if device == "cuda" else lambda: None


def _probe_cuda() -> None:
    torch.cuda.synchronize()
    torch.zeros(1, device="cuda").item()


def find_loss(probe: Probe) -> Exception | None:
    """What the probe raises, or None if the device answers. Lack of memory is an answer.

    After an illegal access, an ECC error or a failed assertion on the device CUDA raises for everything that the
    process does: that is how a lost device differs from a prompt's own error.
    """
    try:
        probe()
    except Exception as error:
        return None if memory.is_out_of_memory(error) else error
    return None


def is_device_error(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, comes from the device or from what compiles for it."""
    from torch._dynamo.exc import BackendCompilerFailed

    if error is None:
        return False
    if isinstance(error, torch.AcceleratorError | BackendCompilerFailed):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in DEVICE_TEXTS):
        return True
    return is_device_error(error.__cause__ or error.__context__)


def hardware(device: str) -> dict[str, str]:
    """What the low bits of images depend on here besides the recipe: the device, and how torch was built for it."""
    if device != "cuda":
        name, capability = "CPU", torch.backends.cpu.get_cpu_capability()
    else:
        properties = torch.cuda.get_device_properties(0)
        name, capability = properties.name, f"{properties.major}.{properties.minor}"
    return {"device": name, "capability": capability, "torch": torch.__version__, "cuda": torch.version.cuda or ""}


def describe(error: Exception) -> str:
    """The first line of an error: torch adds lines of advice for its developers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
