"""Real Ray nodes as processes: raylets to join and to kill, and a head with Ray's own autoscaler and fake nodes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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


def below(*ancestors: int) -> set[int]:
    """All processes below others, themselves left out."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = set()
    for process in parents:
        above = parents[process]
        while above and above not in ancestors:
            above = parents.get(above, 0)
        if above:
            found.add(process)
    return found - {*ancestors}


def children(ancestor: int, marker: str) -> list[int]:
    """Processes below another whose command line has the marker."""
    lines = commands()
    return [process for process in below(ancestor) if marker in lines.get(process, "")]


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, as when a machine goes away."""
    tree = {process.pid, *below(process.pid)}  # before the first dies: nothing leads to an orphan
    for found in tree:
        kill(found)
    process.wait()


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for the temporary files of Ray nodes: pytest's are too deep for sockets, whose paths have 107 bytes.

    Give the nodes the folder as `--temp-dir` and the variables of `marked`. At the end all their processes are killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        yield folder
    finally:
        kill_all_in(folder)
        shutil.rmtree(folder, ignore_errors=True)


def marked(folder: Path) -> dict[str, str]:
    """Variables by which `kill_all_in` finds a process: Ray's agents rename themselves and outlive their raylet."""
    return {"TEST_NODES_FOLDER": str(folder)}


def kill_all_in(folder: Path) -> None:
    """SIGKILL to all processes with the folder in command line or environment and to all below, until none is left."""

    def kill_found() -> bool:
        found = processes_in(folder)
        for process in found:
            kill(process)
        return not found

    assert wait_for(kill_found, 30), f"processes of {folder} outlive SIGKILL: {processes_in(folder)}"


def processes_in(folder: Path) -> set[int]:
    """Processes that have the folder in their command line or environment, and all below them."""
    found = {process for process, line in commands().items() if str(folder) in line}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "environ").read_bytes():
                found.add(int(process.name))
    return (found | below(*found)) - {os.getpid()}


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
        environment = {**os.environ, **ENVIRONMENT, **marked(self.folder)}
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
        return sum("raylet/raylet" in line and self.port in line for line in commands().values())
