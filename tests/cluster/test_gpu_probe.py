"""Trying GPUs: on a Ray that claims to have two, where torch sees none, and the kernels on a CPU."""

import json
import os

import pytest
import torch

from ray_app.cluster import connection, gpu_probe, ray_workarounds
from tests.conftest import run_python


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_compute_what_they_should(dtype):
    gpu_probe.compute(torch.device("cpu"), dtype)


class User:
    """An actor of a run."""

    def works(self) -> bool:
        return True


def try_on_two_gpus() -> None:
    """In a process of its own: what is found while nobody uses the GPUs, and while an actor has one; as JSON."""
    import ray

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with ray_workarounds.quiet_node_messages():
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, **connection.QUIET)
        nodes = connection.living_nodes()
        gpus, silent = gpu_probe.try_gpus(nodes, "float16", seconds=100)
        user = ray.remote(num_gpus=1)(User).remote()
        ray.get(user.works.remote())
        in_use = gpu_probe.try_gpus(nodes, "float16", seconds=2)
        ray.shutdown()
    print(json.dumps({"free": [[gpu.index, gpu.error] for gpu in gpus], "silent": silent, "in use": in_use[1]}))


@pytest.mark.slow
def test_gpus_that_torch_cannot_use_are_named_and_those_in_use_are_left_alone():
    found = json.loads(run_python("from tests.cluster.test_gpu_probe import *; try_on_two_gpus()"))
    assert [index for index, _ in found["free"]] == [0, 1]
    assert all(error for _, error in found["free"])
    assert found["silent"] == []
    assert len(found["in use"]) == 1
