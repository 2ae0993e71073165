"""Joining a running cluster by --address and by RAY_ADDRESS; addresses where none is."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ray_app import cluster
from ray_app.errors import Refused
from tests.conftest import SAMPLE, read_tree, run_cli
from tests.nodes import free_port, marked, short_folder


@pytest.fixture
def head() -> Iterator[str]:
    """A head node of its own on the loopback address; its address."""
    port = free_port()
    with short_folder() as folder:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
        command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}"]
        command += ["--disable-usage-stats"]
        environment = {**os.environ, **marked(folder)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        yield f"127.0.0.1:{port}"


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
