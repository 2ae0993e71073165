"""A CUDA device without a card: shapes, dtypes and devices are real, memory is counted, and nothing is computed.
Knows torch's fake tensors; the project's code and diffusers' run on it unchanged, at full size.

What a card does and this does not: values, kernels, streams, time, the memory of the context and of workspaces.
"""

import contextlib
import ctypes
import dataclasses
import traceback
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK_BYTES = 512
"""What torch's allocator rounds up to."""
DEVICE_TYPES, CUDA = 21, 1
"""How many kinds of device torch's registry of guards has places for, and which is CUDA's."""


@dataclasses.dataclass(frozen=True)
class Copy:
    """Data that moved between host and device, and the line that requested it."""

    source: str
    target: str
    bytes: int
    waits: bool
    """Whether the host stands still for it: the copy is blocking, or its memory on the host is not pinned."""
    line: str


@dataclasses.dataclass(frozen=True)
class Properties:
    """Of the device."""

    name: str = "a GPU without a card"
    major: int = 9
    minor: int = 0


class Event:
    """A CUDA event that has always come."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds."""
        return 1.0


class Stream:
    """A CUDA stream that has nothing to wait for, and remembers for which events work on it would wait."""

    def __init__(self, **_: Any) -> None:
        self.waits_for: list[Event] = []

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: Event) -> None:
        self.waits_for.append(event)

    def record_event(self) -> Event:
        return Event()


class Device(TorchDispatchMode):
    """What happens on the device that is not there.

    Attributes:
        bytes, peak_bytes: storage in use now, and at most since `begin`.
        waits: the lines at which the host waited for a value, since `begin`.
        copies: between host and device, since `begin`.
        stream: the current one.
        read_by: by stream, the storages of other streams that its work reads, as `record_stream` says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.read_by: dict[Stream, set[int]] = {}
        self.bytes = 0
        self._storages: set[int] = set()
        self._pinned: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """Count from here on."""
        self.peak_bytes = self.bytes
        self.waits: list[str] = []
        self.copies: list[Copy] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            return self._read(args[0])
        if function is torch.ops.aten.empty.memory_format and kwargs and kwargs.get("pin_memory"):
            return self.pin(function(*args, **{**kwargs, "pin_memory": False}))
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if function is torch.ops.aten.copy_.default else args[0]
            self._note_copy(source, result, kwargs or {}, args)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                self._add(tensor.untyped_storage())
        return result

    def _read(self, tensor: torch.Tensor) -> Any:
        """The value of a tensor of one number, which is 1: there are no values."""
        if tensor.device.type == "cuda":
            self.waits.append(_line())
        return tensor.dtype == torch.bool or (1.0 if tensor.dtype.is_floating_point else 1)

    def _note_copy(self, source: torch.Tensor, result: torch.Tensor, named: dict[str, Any], args: Any) -> None:
        devices = source.device.type, result.device.type
        if len(set(devices)) == 1:
            return
        non_blocking = named.get("non_blocking", False) or (len(args) > 2 and args[2] is True)
        on_host = source if source.device.type == "cpu" else result
        non_blocking = non_blocking and on_host.untyped_storage()._cdata in self._pinned
        size = result.numel() * result.element_size()
        self.copies.append(Copy(*devices, size, not non_blocking, _line()))

    @contextlib.contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        """Inside, this is the current stream."""
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Remember that a stream reads a tensor."""
        self.read_by.setdefault(stream, set()).add(tensor.untyped_storage()._cdata)

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let copies from and to this memory of the host count as asynchronous, if they are requested so."""
        storage = tensor.untyped_storage()
        self._pinned.add(storage._cdata)
        weakref.finalize(storage, self._pinned.discard, storage._cdata)
        return tensor

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = -(-storage.nbytes() // BLOCK_BYTES) * BLOCK_BYTES
        self._storages.add(key)
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.bytes -= size


@contextlib.contextmanager
def fake_cuda() -> Iterator[Device]:
    """Inside, device "cuda" exists, has unlimited memory and computes nothing. Tensors made inside stay inside."""
    _allow_cuda()
    with FakeTensorMode(), Device() as device, contextlib.ExitStack() as patches:
        for target, own in _patches(device).items():
            patches.enter_context(mock.patch(target, own, create=True))
        yield device


def _patches(device: Device) -> dict[str, Any]:
    """What of torch can't do without a card, or needs values that fake tensors don't have."""

    def synchronize(*_: Any) -> None:
        device.waits.append(_line())

    def numpy(tensor: torch.Tensor, **_: Any) -> np.ndarray:
        """Anything that is not one flat value."""
        dtype = np.uint8 if tensor.dtype == torch.uint8 else np.float32
        return (np.arange(tensor.numel()) % 251).astype(dtype).reshape(tuple(tensor.shape))

    def tolist(tensor: torch.Tensor) -> Any:
        return np.ones(tuple(tensor.shape), bool).tolist()

    nothing = lambda *_, **__: None  # noqa: E731
    return {
        "torch.cuda.synchronize": synchronize,
        "torch.cuda.get_device_properties": lambda *_: Properties(),
        "torch.cuda.set_per_process_memory_fraction": nothing,
        "torch.cuda.empty_cache": nothing,
        "torch.cuda.max_memory_reserved": lambda *_: device.peak_bytes,
        "torch.cuda.get_rng_state": nothing,
        "torch.cuda.set_rng_state": nothing,
        "torch.cuda.Event": lambda **_: Event(),
        "torch.cuda.Stream": Stream,
        "torch.cuda.stream": device.use,
        "torch.cuda.current_stream": lambda *_: device.stream,
        "torch.Tensor.record_stream": lambda tensor, stream: device.record(tensor, stream),
        "torch.Tensor.pin_memory": lambda tensor: device.pin(tensor),
        "torch.Tensor.numpy": numpy,
        "torch.Tensor.tolist": tolist,
        "torch.nn.functional.scaled_dot_product_attention": _attention,
        "torch.nn.Module._apply": _apply,
    }


def _allow_cuda() -> None:
    """Let tensors be on CUDA devices: torch sets a guard that does nothing where CUDA's own says that it has no device.

    A build for CPUs has no guard to ask, so one that answers 0 to every question takes its place for the moment.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        library = ctypes.CDLL(f"{torch.__path__[0]}/lib/libc10.so")
        guards = (ctypes.c_void_p * DEVICE_TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        if guards[CUDA] is not None:
            return
        zero = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)(lambda _: 0)
        methods = (ctypes.c_void_p * 64)(*[ctypes.cast(zero, ctypes.c_void_p).value] * 64)
        guard = (ctypes.c_void_p * 1)(ctypes.addressof(methods))
        guards[CUDA] = ctypes.addressof(guard)
        torch._C._ensureCUDADeviceGuardSet()
        assert guards[CUDA] != ctypes.addressof(guard), "torch did not set its own guard"
        return
    torch._C._ensureCUDADeviceGuardSet()


def _apply(module: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` with new parameters: torch's swaps them, and fake ones have weak references that forbid it."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                module._parameters[name] = torch.nn.Parameter(change(parameter), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """The kernel that CUDA would choose: without a device torch falls back on the one that makes the whole matrix."""
    aten = torch.ops.aten
    if query.shape[-1] <= 256 and query.dtype != torch.float32 and attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


def _line() -> str:
    """File and line of the innermost caller that belongs neither to torch nor to this file."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if not any(part in frame.filename for part in ("/torch/", "fake_cuda.py", "contextlib.py", "unittest/mock.py"))
    ]
    return "/".join(frames[-1].filename.rsplit("/", 2)[-2:]) + f":{frames[-1].lineno}"
