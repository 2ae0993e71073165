"""What each node of a cluster is: asked of the node itself, by a task that needs nothing of this project there.
Knows Ray tasks, versions and a probe file; nothing of what is wrong with what it finds."""

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pyarrow")
IMPORTED = ("ray_app.worker", "actors.generator")
"""What an actor imports, with all that these do."""
ANSWER_SECONDS = 120.0
"""The first import of torch from a slow disk takes a minute."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One node. Sizes in bytes; `answer` is what `look` found there, None if the node did not answer."""

    node_id: str
    name: str
    cpus: float
    gpus: float
    memory: float
    is_driver: bool
    answer: dict[str, Any] | None

    def gpu_memory(self) -> list[int]:
        """Of each GPU; empty where it isn't known."""
        return [size for _, size in (self.answer or {}).get("gpus", [])]


def survey(folder: str | None = None, probe: str | None = None) -> list[Node]:
    """All nodes that are alive, the driver's first. Ray must be connected.

    Args:
        folder: a path that is looked for on each node.
        probe: a file that is looked for, and beside which a file is written and removed.
    """
    import ray
    from ray import cloudpickle

    here = ray.get_runtime_context().get_node_id()
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != here)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # or a node without the project could not say so
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        asked = [
            task.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote(folder, probe) for node in alive
        ]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    return [
        _node(node, here, _answer(one) if one in answered else None) for node, one in zip(alive, asked, strict=True)
    ]


def why_no_actor() -> str | None:
    """Why actors can't start on one of the nodes, None if they could on all that answer."""
    for node in survey():
        if node.answer and (why := node.answer["lacks"]):
            return cannot_start(node, why)
    return None


def cannot_start(node: Node, why: str) -> str:
    """That actors can't start on a node, and what to do."""
    mend = "install proxyqueue there as here, or send the run with proxyqueue submit, which ships it"
    if "ray_app" not in why and "actors" not in why:
        mend = "mend the installation there"
    return f"node {node.name}: actors can't start there: {why}; {mend}"


def _answer(reference: Any) -> dict[str, Any] | None:
    import ray
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError:  # the node went away
        return None


def _node(node: dict[str, Any], here: str, answer: dict[str, Any] | None) -> Node:
    has = node["Resources"]
    memory = has.get("memory", 0.0) + has.get("object_store_memory", 0.0)
    name, is_driver = node["NodeManagerAddress"], node["NodeID"] == here
    return Node(node["NodeID"], name, has.get("CPU", 0.0), has.get("GPU", 0.0), memory, is_driver, answer)


def look(folder: str | None, probe: str | None) -> dict[str, Any]:
    """On a node: versions, why actors can't start, GPUs as (name, bytes), whether the folder is there, the probe."""
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


def versions() -> dict[str, str]:
    """Of what must be the same on every node; "none" for what is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    project = sys.modules.get("ray_app")
    found["proxyqueue"] = getattr(project, "__version__", "none")  # installed or not, it is what runs
    return found


def _gpus() -> list[tuple[str, int]]:
    """As the driver's own tool says: torch would take seconds and memory, and sees none in a task without a GPU."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
        return [(name.strip(), int(size) * 2**20) for name, size in (line.rsplit(",", 1) for line in lines)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _probe(path: str) -> str | None:
    """What is wrong with a path that should be the same on every node; None if nothing is."""
    if not os.path.exists(path):
        return "is not the same folder there"
    mine = f"{path}-{os.getpid()}"
    try:
        with open(mine, "x"):
            pass
        os.remove(mine)
    except OSError as error:
        return f"can't be written there: {error.strerror}"
    return None
