"""Autoscaling: which nodes Ray's autoscaler may add, read where it runs.
Knows node types and processes of the head; nothing of actors or images."""

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

from ray_app.cluster.connection import living_nodes, node_id
from ray_app.cluster.ray_workarounds import kubernetes_producer, session_name

KUBERNETES_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """What an autoscaler is allowed to start. `types`: (GPUs of a node, most such nodes); `logs`: where it says why."""

    types: tuple[tuple[float, int], ...]
    max_nodes: int
    logs: str


def find() -> Autoscaler | None:
    """The cluster's autoscaler, None if none runs. The head's node tells: Ray tells a driver nothing of its limits."""
    import ray

    session = session_name()
    head = next((node.node_id for node in living_nodes() if node.is_head), None)
    if head is None or head == node_id():
        return detect_on_head(session)
    task = ray.remote(num_cpus=0, max_retries=3)(detect_on_head)
    return ray.get(task.options(label_selector={"ray.io/node-id": head}).remote(session))


def detect_on_head(session: str) -> Autoscaler | None:
    """On the head's node: the autoscaler of this Ray session. Every head has a monitor; one with a file scales."""
    psutil = importlib.import_module("psutil")  # Ray installs it
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        logs = Path(flags.get("logs-dir", ""))
        if logs.parent.name != session or not any(word.endswith("monitor.py") for word in words):
            continue
        if "autoscaling-config" in flags:
            return _from_file(flags["autoscaling-config"], f"{logs}/monitor.log on the head")
    if "KUBERNETES_SERVICE_HOST" in os.environ and "RAY_CLUSTER_NAME" in os.environ:
        return _from_kubernetes(os.environ["RAY_CLUSTER_NAME"])
    return None


def _from_file(path: str, logs: str) -> Autoscaler:
    import yaml

    return from_config(yaml.safe_load(Path(path).expanduser().read_text()), logs)


def _from_kubernetes(name: str) -> Autoscaler | None:
    """KubeRay's autoscaler runs alongside the head, in its own container, and scales the RayCluster named there."""
    logs = f"its container: kubectl logs -l ray.io/cluster={name},ray.io/node-type=head -c autoscaler"
    try:
        producer = kubernetes_producer(name, (KUBERNETES_ACCOUNT / "namespace").read_text().strip())
        cluster = producer.kubernetes_api_client.get(f"rayclusters/{name}")
        if not cluster["spec"].get("enableInTreeAutoscaling"):
            return None
        return from_config(producer(), logs)
    except Exception:  # a head whose account may not read it: only one with an autoscaler may
        return None


def from_config(config: dict[str, Any], logs: str) -> Autoscaler:
    """From what `ray up` or KubeRay give to Ray's autoscaler."""
    most = int(config.get("max_workers", 2))
    workers = (kind for name, kind in config["available_node_types"].items() if name != config.get("head_node_type"))
    types = ((float(kind.get("resources", {}).get("GPU", 0)), int(kind.get("max_workers", most))) for kind in workers)
    return Autoscaler(tuple((gpus, count) for gpus, count in types if gpus), most, logs)
