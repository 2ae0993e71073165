"""Joining a running cluster by --address and by RAY_ADDRESS; addresses where none is."""

import socket

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
    assert cluster._check_answers("auto") is None
