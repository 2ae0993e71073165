"""Joining a running cluster by --address and by RAY_ADDRESS; addresses where none is."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app import cluster
from ray_app.errors import Refused
from tests.conftest import SAMPLE, check_index_is_true, read_tree, run_cli


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_running_cluster_is_joined_and_left_running(ray_local, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    flags = ["--json_file", str(SAMPLE), "--model_path", "tiny", "--max_inference_steps", "2", "--limit", "1"]
    flags += ["--num_workers", "1", "--address", address]
    result = run_cli("generate", *flags, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert result.returncode == 0, result.stderr
    assert check_index_is_true(tmp_path / "output") == len(read_tree(tmp_path / "output")) == 5
    host, port = address.split(":")
    socket.create_connection((host, int(port)), 5).close()
    assert ray.get(ray.remote(num_cpus=0)(lambda: "answers").remote(), timeout=60) == "answers"


def test_ray_address_is_honoured(nowhere, tmp_path):
    flags = ["--json_file", str(SAMPLE), "--model_path", "tiny"]
    result = run_cli("generate", *flags, cwd=tmp_path, RAY_ADDRESS=nowhere)
    assert result.returncode == 2
    assert f"--address {nowhere}: no Ray cluster answers there" in result.stderr


def test_an_address_where_nothing_listens_is_refused_at_once(nowhere):
    with pytest.raises(Refused, match=f"--address {nowhere}: no Ray cluster answers there"):
        cluster._check_answers(nowhere)


def test_the_address_of_a_cluster_that_is_gone_is_refused_with_the_file_that_names_it(nowhere):
    """In a process of its own: Ray would find that of this one."""
    noted = Path(os.environ["RAY_TMPDIR"]) / "stale"
    (noted / "ray").mkdir(parents=True)
    (noted / "ray" / "ray_current_cluster").write_text(nowhere)
    ask = (
        "from ray._private import services; services.find_gcs_addresses = set\n"  # others may run on this machine
        "from ray_app import cluster, errors\n"
        "try: cluster._check_answers('auto')\n"
        "except errors.Refused as refused: print(refused)"
    )
    environment = {**os.environ, "RAY_TMPDIR": str(noted)}
    said = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith(
        f"--address auto ({nowhere}, as {noted}/ray/ray_current_cluster says; remove the file if that cluster is gone):"
        " no Ray cluster answers there"
    )


def test_an_ipv6_address_is_understood():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        assert cluster._check_answers(f"[::1]:{listening.getsockname()[1]}") == "::1"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_of_another_kind_is_refused_with_what_to_give(address):
    with pytest.raises(Refused, match=f"--address {address}: is no address that a driver can join; give HOST:PORT"):
        cluster._check_answers(address)
