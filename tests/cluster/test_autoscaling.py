"""Autoscaling: the limits that are read; and for real, Ray's own autoscaler with fake nodes."""

import time
from collections.abc import Iterator

import pytest

from ray_app.cluster import autoscaling
from ray_app.cluster.autoscaling import Autoscaler
from ray_app.errors import Refused
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from tests.conftest import SAMPLE, read_tree, start_cli
from tests.support.nodes import AutoscaledHead, short_folder
from tests.support.outputs import check_all_images_exist
from tests.support.processes import wait_for

FLAGS = ["--json_file", str(SAMPLE), "--model_path", "tiny", "--max_inference_steps", "16", "--save_steps", "1", "16"]
IMAGES = 6 * 5 * 8 * 2


def test_limits_are_read_from_what_ray_up_is_given():
    config = {
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 0},
            "small": {"resources": {"CPU": 4, "GPU": 1}},
            "large": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 2},
            "cpu": {"resources": {"CPU": 8}, "max_workers": 3},
        },
    }
    found = autoscaling.from_config(config, "monitor.log")
    assert found == Autoscaler(((1, 5), (4, 2)), 5, "monitor.log")


def test_limits_are_read_from_a_raycluster_of_kuberay():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    def group(gpus: int, **more) -> dict:
        limits = {"cpu": "4", "memory": "16Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        pod = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}
        return {"rayStartParams": {}, "template": pod, **more}

    workers = group(2, groupName="gpu", replicas=0, minReplicas=0, maxReplicas=6, numOfHosts=1)
    spec = {"headGroupSpec": group(0), "workerGroupSpecs": [workers], "enableInTreeAutoscaling": True}
    config = derive({"metadata": {"name": "c", "namespace": "n"}, "spec": spec})
    assert autoscaling.from_config(config, "its container") == Autoscaler(((2, 6),), 6, "its container")


def test_no_gpu_and_no_autoscaler_is_refused_at_once(ray_local, tmp_path):
    assert autoscaling.find() is None
    flags = {"json_file": str(SAMPLE), "output_base_path": str(tmp_path / "out"), "model_path": "tiny"}
    with pytest.raises(Refused, match=r"--gpus_per_actor 1: the largest node has 0 GPUs, and no autoscaler can add"):
        generate(Generate(**flags, gpus_per_actor=1.0))


@pytest.fixture(scope="module")
def head() -> Iterator[AutoscaledHead]:
    with short_folder() as folder:
        head = AutoscaledHead(folder, max_workers=3)
        head.start()
        yield head


@pytest.mark.slow
def test_workers_come_and_go_with_the_run(head, tmp_path):
    flags = [*FLAGS, "--address", head.address, "--gpus_per_actor", "1", "--img_per_prompt", "8"]
    driver = start_cli("generate", *flags, cwd=tmp_path, RAY_AUTH_MODE="token")
    most = 0
    while driver.poll() is None:
        most = max(most, head.nodes())
        time.sleep(0.5)
    out, err = driver.communicate()
    assert driver.returncode == 0, err
    assert most == 4, err
    assert len(read_tree(tmp_path / "output")) == check_all_images_exist(tmp_path / "output") == IMAGES
    assert "(raylet)" not in out + err  # Ray's own words about actors that have no place
    wait_for("the workers' nodes go", lambda: head.nodes() == 1, 120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--gpus_per_actor", "2"],
            "the largest node has 0 GPUs, and the autoscaler can add nodes with at most 1; use --gpus_per_actor 1",
        ),
        (
            ["--gpus_per_actor", "1", "--num_workers", "5"],
            "--num_workers 5: with --gpus_per_actor 1 the cluster has room for 3 actors at most",
        ),
    ],
)
def test_more_than_the_autoscaler_can_add_is_refused(head, tmp_path, flags, why):
    driver = start_cli("generate", *FLAGS, *flags, "--address", head.address, cwd=tmp_path, RAY_AUTH_MODE="token")
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 2
    assert why in err
    assert head.nodes() == 1
