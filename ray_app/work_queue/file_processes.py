"""Processes that write files, started while the workers load: later each would take a core for a second from a batch.
Knows tasks of Ray; nothing of what is written."""

import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

IMPORTED = ("ray.data", "ray.util.state")
"""What a task of Ray Data imports."""


def start(write: Callable[..., Any], count: int, placement: Mapping[str, Any]) -> list[Any]:
    """Have Ray start so many processes that have imported what `write` needs. Does not wait, and never fails.

    A process that has nothing to do is given the next task, that of Ray Data too.

    Args:
        placement: arguments of the tasks, such as their node.

    Returns:
        References to the tasks: Ray cancels what nobody refers to.
    """
    import ray
    from ray import cloudpickle

    pickled = cloudpickle.dumps(write)
    task = ray.remote(num_cpus=0, max_retries=0)(_import).options(**placement)
    return [task.remote(pickled) for _ in range(count)]


def _import(pickled: bytes) -> None:
    from ray import cloudpickle

    with contextlib.suppress(Exception):  # the first batch's own task will say so
        for module in IMPORTED:
            importlib.import_module(module)
        cloudpickle.loads(pickled)
