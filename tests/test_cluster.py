"""Joining a running cluster by --address and by RAY_ADDRESS; addresses where none is."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_app import cluster
from ray_app.errors import Refused
from tests.conftest import SAMPLE, read_tree, run_cli


def processes(marker: str) -> list[int]:
    """Ids of the processes that have the marker in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if marker in command and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


@pytest.fixture
def head(tmp_path_factory) -> Iterator[str]:
    """A head node of its own on the loopback address; its address."""
    folder = tmp_path_factory.mktemp("r")  # a short path: Ray makes sockets below it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
    subprocess.run([*command, "--disable-usage-stats"], check=True, capture_output=True, timeout=60)
    yield f"127.0.0.1:{port}"
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes(str(folder)):
            os.kill(process, number)


def test_a_running_cluster_is_joined_and_left_running(head, tmp_path):
    flags = ["--json_file", str(SAMPLE), "--model_path", "tiny", "--max_inference_steps", "2", "--limit", "1"]
    result = run_cli("generate", *flags, "--address", head, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert result.returncode == 0, result.stderr
    assert len(read_tree(tmp_path / "output")) == 5
    host, port = head.split(":")
    socket.create_connection((host, int(port)), 5).close()


def test_ray_address_is_honoured(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        flags = ["--json_file", str(SAMPLE), "--model_path", "tiny"]
        result = run_cli("generate", *flags, cwd=tmp_path, RAY_ADDRESS=address)
    assert result.returncode == 2
    assert f"--address {address}: no Ray cluster answers there" in result.stderr


def test_an_address_where_nothing_listens_is_refused_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(Refused, match=f"--address {address}: no Ray cluster answers there"):
            cluster._check_answers(address)
    assert cluster._check_answers("auto") is None
