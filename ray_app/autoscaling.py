"""Autoscaling: what Ray's autoscaler could bring, read where it runs, and what to say while nothing has come yet.
Knows node types and processes of the head; nothing of actors or images."""

import dataclasses
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_app.messages import LOG

HEAD = "node:__internal_head__"
LONG_WAIT_SECONDS = 600.0
"""Clouds bring a GPU within minutes; after this long somebody should look at what the autoscaler says."""
KUBERNETES_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclasses.dataclass(frozen=True)
class Autoscaler:
    """What an autoscaler is allowed to start. `types`: (GPUs of a node, most such nodes); `logs`: where it says why."""

    types: tuple[tuple[float, int], ...]
    max_nodes: int
    logs: str

    def can_bring(self, gpus_per_actor: float) -> int:
        """Most actors on its nodes."""
        left, actors = self.max_nodes, 0
        for gpus, most in sorted(self.types, reverse=True):
            nodes = min(most, left)
            left -= nodes
            actors += nodes * int(gpus / gpus_per_actor)
        return actors

    def largest(self) -> float:
        """GPUs of its largest node."""
        return max((gpus for gpus, most in self.types if most), default=0.0)


def find() -> Autoscaler | None:
    """The cluster's autoscaler, if one runs. Asked of the head's node: Ray tells a driver nothing of its limits."""
    import ray
    from ray._private.worker import global_worker

    node: Any = global_worker.node
    head = next((node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]), None)
    if head is None or head == ray.get_runtime_context().get_node_id():
        return look(node.session_name)
    there = ray.remote(num_cpus=0, max_retries=3)(look).options(label_selector={"ray.io/node-id": head})
    return ray.get(there.remote(node.session_name))


def look(session: str) -> Autoscaler | None:
    """On the head's node: the autoscaler of this Ray session. Every head has a monitor; one with a file scales."""
    psutil = importlib.import_module("psutil")  # Ray brings it along
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
    """KubeRay's runs beside the head, in a container of its own, and scales by the RayCluster that it is told of."""
    from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer

    logs = f"its container: kubectl logs -l ray.io/cluster={name},ray.io/node-type=head -c autoscaler"
    try:
        producer = AutoscalingConfigProducer(name, (KUBERNETES_ACCOUNT / "namespace").read_text().strip())
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


class Waiting:
    """Says what a run waits for while no actor is up.

    Args:
        autoscaler: where its messages are.
        wanted: actors.
        workers_up: how many actors would fit on the nodes that are there.
    """

    def __init__(self, autoscaler: Autoscaler, wanted: int, workers_up: Callable[[], int]):
        self.autoscaler, self.wanted, self._workers_up = autoscaler, wanted, workers_up
        self._since = time.monotonic()
        self._said = False

    def __call__(self) -> str:
        """Half a line; says once on stderr, after ten minutes without a worker, where to look."""
        up = min(self._workers_up(), self.wanted)
        for_what = "loading the model" if up else "waiting for the autoscaler"
        if up:
            self._since, self._said = time.monotonic(), False
        elif not self._said and time.monotonic() - self._since >= LONG_WAIT_SECONDS:
            self._said = True
            minutes = LONG_WAIT_SECONDS / 60
            LOG.warning(
                f"no GPU worker came in {minutes:.0f} minutes: the autoscaler is dead or the cloud has"
                f" none; it says why in {self.autoscaler.logs}; the run goes on waiting"
            )
        return f"{up} of {self.wanted} GPU workers up, {for_what}"
