"""What each node of a cluster is: reported by the node itself, in a task that needs nothing of this project there.
Knows Ray tasks, versions and a probe file; does not judge what it finds."""

import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ray_app import machine
from ray_app.cluster.connection import LivingNode, living_nodes, node_id
from ray_app.machine import query_gpus, versions

IMPORTED = ("ray_app.generation.worker", "actors.generator")
"""What an actor imports, with all that these do."""
ANSWER_SECONDS = 120.0
"""The first import of torch from a slow disk takes a minute."""


@dataclasses.dataclass(frozen=True)
class Node(LivingNode):
    """A node, and what it says of itself: `answer` is what `probe_node` found there, None if it did not answer."""

    is_driver: bool
    answer: dict[str, Any] | None

    def gpu_memory(self) -> list[int]:
        """Of each GPU; empty where it isn't known."""
        return [size for _, size in (self.answer or {}).get("gpus", [])]


def probe_nodes(folder: str | None = None, probe: str | None = None, seconds: float = ANSWER_SECONDS) -> list[Node]:
    """All nodes that are alive, the driver's first. Ray must be connected.

    Args:
        folder: a path that each node looks for.
        probe: a file that each node looks for, and alongside which it writes and removes a file.
        seconds: how long a node may take to answer.
    """
    import ray

    driver_node = node_id()
    nodes = sorted(living_nodes(), key=lambda node: node.node_id != driver_node)
    with _sent_by_value():
        task = ray.remote(num_cpus=0, max_retries=0)(probe_node)
        references = [
            task.options(label_selector={"ray.io/node-id": node.node_id}).remote(folder, probe) for node in nodes
        ]
        answered, _ = ray.wait(references, num_returns=len(references), timeout=seconds)
    probed = []
    for node, reference in zip(nodes, references, strict=True):
        answer = _answer(reference) if reference in answered else None
        probed.append(Node(**vars(node), is_driver=node.node_id == driver_node, answer=answer))
    return probed


@contextlib.contextmanager
def _sent_by_value() -> Iterator[None]:
    """Send functions of these modules with their code: a node without the project could not import them to say so."""
    from ray import cloudpickle

    modules = (machine, sys.modules[__name__])
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def why_no_actor(nodes: Sequence[Node] | None = None) -> str | None:
    """Why actors can't start on one of the nodes, None if they could on all that answer."""
    for node in probe_nodes() if nodes is None else nodes:
        if node.answer and (why := node.answer["lacks"]):
            return cannot_start(node, why)
    return None


def describe_silent_nodes(nodes: Sequence[Node]) -> str:
    """The nodes on which no process comes up, as the end of a sentence; "" if all answer."""
    silent = [node.name for node in nodes if node.answer is None]
    return f": no process comes up on node {', '.join(silent)}" if silent else ""


def cannot_start(node: Node, why: str) -> str:
    """That actors can't start on a node, and what to do."""
    advice = "install proxyqueue there as here, or send the run with proxyqueue submit, which ships it"
    if "ray_app" not in why and "actors" not in why:
        advice = "repair the installation there"
    return f"node {node.name}: actors can't start there: {why}; {advice}"


def _answer(reference: Any) -> dict[str, Any] | None:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError:  # the node went away
        return None


def probe_node(folder: str | None, probe: str | None) -> dict[str, Any]:
    """On a node: versions, why actors can't start, GPUs as (name, bytes), whether the folder exists, the probe."""
    return {
        "lacks": lacks(),
        "versions": versions(),
        "gpus": _gpus(),
        "folder": folder is None or os.path.isdir(folder),
        "probe": _probe(probe) if probe else None,
    }


def lacks() -> str | None:
    """Why what actors import can't be imported here, None if it can."""
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module may raise
            return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return None


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each GPU; nothing where nvidia-smi does not list them with their memory."""
    try:
        return [(name, int(mebibytes) * 2**20) for name, mebibytes in query_gpus("name", "memory.total")]
    except ValueError:
        return []


def _probe(path: str) -> str | None:
    """What is wrong with a path that should be the same on every node; None if nothing is."""
    if not os.path.exists(path):
        return "is not the same folder there"
    own_probe = f"{path}-{os.getpid()}"
    try:
        with open(own_probe, "x"):
            pass
        os.remove(own_probe)
    except OSError as error:
        return f"can't be written there: {error.strerror}"
    return None
