"""What a node says of itself: GPUs as nvidia-smi lists them, and time enough to answer."""

import importlib.metadata
import os
import platform
import time

import pytest

import ray_app
from ray_app import machine
from ray_app.cluster import node_probe


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Makes `nvidia-smi` a program that prints this."""

    def install(printed: str) -> None:
        (tmp_path / "printed").write_text(printed)
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat '{tmp_path}/printed'\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_memory_of_gpus_is_told_in_mebibytes_by_nvidia_smi(nvidia_smi):
    nvidia_smi("NVIDIA H100 80GB HBM3, 81559\nNVIDIA T4, with a comma, 15360\n")
    assert node_probe.probe_node(None, None)["gpus"] == [
        ("NVIDIA H100 80GB HBM3", 85_520_809_984),
        ("NVIDIA T4, with a comma", 16_106_127_360),
    ]


@pytest.mark.parametrize("printed", ["", "No devices were found\n", "a GPU, [N/A]\n"])
def test_gpus_that_are_not_listed_with_their_memory_are_unknown(nvidia_smi, printed):
    nvidia_smi(printed)
    assert node_probe.probe_node(None, None)["gpus"] == []


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("ray", "no-such-package"))
    assert machine.versions() == {
        "proxyqueue": ray_app.__version__,
        "python": platform.python_version(),
        "ray": importlib.metadata.version("ray"),
        "no-such-package": "none",
    }


def test_a_node_has_two_minutes_to_answer(ray_local, monkeypatch):
    """A fresh node starts a process for the question, which takes seconds where it is busy."""
    import ray

    waited = []
    wait = ray.wait

    def observed(*arguments, timeout, **named):
        waited.append(timeout)
        return wait(*arguments, timeout=timeout, **named)

    monkeypatch.setattr(ray, "wait", observed)
    began = time.monotonic()
    (node,) = node_probe.probe_nodes()
    assert max(waited) == 120  # Ray's own threads wait too, for less
    assert node.answer
    assert time.monotonic() - began < 60
