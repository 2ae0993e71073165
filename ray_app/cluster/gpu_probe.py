"""What each GPU of a cluster does: tried on the GPU itself, by a task that reserves all GPUs of its node.
Knows torch's kernels and nvidia-smi; nothing of what a model needs."""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from ray_app.cluster.connection import LivingNode
from ray_app.machine import query_gpus

TRY_SECONDS = 60.0
"""How long the tries may take; GPUs that a run uses meanwhile are not tried."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One GPU, as it was found. Sizes in bytes.

    Args:
        error: what it raised; None if it computes.
        free: memory that is free for an actor; None where it is unknown.
        ecc_errors: uncorrected ones since the driver was loaded; None where nvidia-smi gives none.
    """

    node: str
    index: int
    name: str = ""
    error: str | None = None
    free: int | None = None
    total: int | None = None
    driver: str = ""
    ecc_errors: int | None = None


def try_gpus(nodes: Sequence[LivingNode], dtype: str, seconds: float = TRY_SECONDS) -> tuple[list[Gpu], list[str]]:
    """Try the GPUs of these nodes: allocate, a convolution and an attention in `dtype`. Ray must be connected.

    Returns:
        The GPUs that answered, and the names of nodes whose GPUs were in use or did not answer in time.
    """
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node may have no installation of the project
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(try_gpus_here)
        answers = {
            task.options(num_gpus=int(node.gpus), label_selector={"ray.io/node-id": node.node_id}).remote(
                int(node.gpus), dtype
            ): node
            for node in nodes
            if node.gpus >= 1
        }
        ready, late = ray.wait([*answers], num_returns=len(answers), timeout=seconds) if answers else ([], [])
        gpus, silent = [], [answers[answer].name for answer in late]
        for answer in late:
            ray.cancel(answer, force=True)
        for answer in ready:
            try:
                gpus += [Gpu(answers[answer].name, **found) for found in ray.get(answer)]
            except RayError:  # its process died
                silent.append(answers[answer].name)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return gpus, silent


def try_gpus_here(count: int, dtype: str) -> list[dict[str, Any]]:
    """On a node: what each of the GPUs that Ray says it has does, as fields of `Gpu`."""
    listed = query_gpus("driver_version", "ecc.errors.uncorrected.volatile.total")
    found = []
    for index in range(count):
        driver, errors = listed[index] if index < len(listed) else ("", "")
        facts = {"index": index, "driver": driver, "ecc_errors": int(errors) if errors.isdecimal() else None}
        try:
            facts |= _try_gpu(index, dtype)
        except Exception as error:  # whatever torch, the driver or an installation raises
            facts["error"] = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        found.append(facts)
    return found


def _try_gpu(index: int, dtype: str) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    free, total = torch.cuda.mem_get_info(index)
    compute(torch.device("cuda", index), dtype)
    return {"name": torch.cuda.get_device_name(index), "free": free, "total": total}


def compute(device: Any, dtype: str) -> None:
    """A convolution and an attention with a model's numbers of channels, and wait for their results."""
    torch = importlib.import_module("torch")
    kind = {"device": device, "dtype": getattr(torch, dtype)}
    image = torch.nn.functional.conv2d(torch.ones(1, 32, 64, 64, **kind), torch.ones(32, 32, 3, 3, **kind), padding=1)
    tokens = torch.ones(1, 8, 64, 64, **kind)
    mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    if image[0, 0, 32, 32].item() != 288 or abs(mixed.float().mean().item() - 1) > 0.01:
        raise RuntimeError("computes wrong results")
