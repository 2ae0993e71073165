"""Real Ray nodes as processes: raylets to join and to kill, and a head with Ray's own autoscaler and fake nodes."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import processes

START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--node-ip-address=127.0.0.1"]
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
FAKE_HEAD = "f" * 51 + "00000"
"""The node id that Ray's fake provider has for its head."""


def free_port() -> int:
    """Outside the ports that Ray keeps for workers."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if not 10_000 < free.getsockname()[1] < 20_000:
                return free.getsockname()[1]


def answers(address: str) -> bool:
    host, port = address.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for the temporary files of Ray nodes: pytest's are too deep for sockets, whose paths have 107 bytes.

    Give the nodes the folder as `--temp-dir`, and `node_environment`. At the end all their processes are killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        yield folder
    finally:
        processes.kill_all_with(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def node_environment(folder: Path) -> dict[str, str]:
    """Variables of a node: by the folder its processes are found, since Ray's agents rename themselves and outlive it.

    GPUs that a node only claims to have are not looked for among the machine's.
    """
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {**kept, **ENVIRONMENT, "TEST_NODES_FOLDER": str(folder)}


class AutoscaledHead:
    """A head without GPUs whose autoscaler can bring fake nodes: real raylets with {CPU: 1, GPU: 1} on this machine."""

    def __init__(self, folder: Path, max_workers: int, v2: bool = True):
        self.port = f":{free_port()}"
        self.address = f"127.0.0.1{self.port}"
        self.folder, self.v2 = folder, v2
        provider: dict[str, Any] = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": self.address,
        }
        if v2:
            provider |= {"launch_multiple": True, "head_node_id": FAKE_HEAD}
        worker = {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": max_workers}
        head = {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0}
        config = {
            "cluster_name": "fake",
            "max_workers": 8,
            "provider": provider,
            "auth": {},
            "docker": {},
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": 0.1,
            "available_node_types": {"gpu_worker": worker, "ray.head.default": head},
            "head_node_type": "ray.head.default",
        }
        self.config_file = folder / "autoscaling.json"
        self.config_file.write_text(json.dumps(config))

    def start(self) -> None:
        environment = node_environment(self.folder)
        environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        if self.v2:
            environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD}
            environment |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD}
        command = [
            *START,
            "--head",
            f"--port={self.port[1:]}",
            "--num-cpus=2",
            "--num-gpus=0",
            f"--temp-dir={self.folder}",
        ]
        command += [f"--autoscaling-config={self.config_file}", "--include-dashboard=false"]
        command += ["--object-store-memory=200000000"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)

    def nodes(self) -> int:
        """Raylets of the cluster, the head's included."""
        return sum("raylet/raylet" in line and self.port in line for line in processes.commands().values())
