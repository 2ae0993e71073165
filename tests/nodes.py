"""Real Ray nodes as processes: raylets to join and to kill, and a head with Ray's own autoscaler and fake nodes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def wait_for(what: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return False


def commands() -> dict[int, str]:
    """Every process's command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    return found


def children(ancestor: int, marker: str) -> list[int]:
    """Processes below another whose command line has the marker."""
    parents, lines = {}, commands()
    for process in lines:
        with contextlib.suppress(OSError, ValueError):
            parents[process] = int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    found = []
    for process, command in lines.items():
        above: int | None = process
        while above and above != ancestor:
            above = parents.get(above)
        if above == ancestor and marker in command and process != ancestor:
            found.append(process)
    return found


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, as when a machine goes away."""
    for below in children(process.pid, ""):
        kill(below)
    process.kill()
    process.wait()


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
        environment = {**os.environ, **ENVIRONMENT, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
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
        return sum("raylet/raylet" in line and self.port in line for line in commands().values())

    def stop(self) -> None:
        """End everything that has this head's folder or address in its command line."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process, line in commands().items():
                if (str(self.folder) in line or self.port in line) and process != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, number)
            wait_for(lambda: not self.nodes(), 5)
