"""Autoscaling: what could come and what is refused; and for real, Ray's own autoscaler with fake nodes."""

import re
import time
from collections.abc import Iterator

import pytest

from ray_app import autoscaling, cluster
from ray_app.autoscaling import Autoscaler, Waiting
from ray_app.errors import Refused
from ray_app.generate import generate
from ray_app.options import Generate
from ray_app.progress import Progress
from tests.conftest import SAMPLE, check_index_is_true, read_tree, start_cli
from tests.nodes import AutoscaledHead, short_folder
from tests.processes import wait_for

FLAGS = ["--json_file", str(SAMPLE), "--model_path", "tiny", "--max_inference_steps", "16", "--save_steps", "1", "16"]
IMAGES = 6 * 5 * 8 * 2


def scaler(*types: tuple[float, int], most: int = 10) -> Autoscaler:
    return Autoscaler(types, most, "monitor.log")


@pytest.mark.parametrize(
    ("found", "gpus", "actors"),
    [
        (scaler((1, 3)), 1, 3),
        (scaler((1, 3)), 0.5, 6),
        (scaler((1, 3)), 2, 0),
        (scaler((8, 2), (1, 5)), 2, 8),
        (scaler((1, 9), (4, 2), most=3), 1, 9),  # the largest first: 4 + 4 + 1
        (scaler(), 1, 0),
    ],
)
def test_what_an_autoscaler_can_bring(found, gpus, actors):
    assert found.can_bring(gpus) == actors


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
    assert (found.can_bring(1), found.largest()) == (11, 4)


def test_limits_are_read_from_a_raycluster_of_kuberay():
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    def group(gpus: int, **more) -> dict:
        limits = {"cpu": "4", "memory": "16Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        pod = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}
        return {"rayStartParams": {}, "template": pod, **more}

    workers = group(2, groupName="gpu", replicas=0, minReplicas=0, maxReplicas=6, numOfHosts=1)
    spec = {"headGroupSpec": group(0), "workerGroupSpecs": [workers], "enableInTreeAutoscaling": True}
    config = derive({"metadata": {"name": "c", "namespace": "n"}, "spec": spec})
    assert autoscaling.from_config(config, "its container").can_bring(1) == 12


def test_no_gpu_and_no_autoscaler_is_refused_at_once(ray_local, tmp_path):
    assert autoscaling.find() is None
    flags = {"json_file": str(SAMPLE), "output_base_path": str(tmp_path / "out"), "model_path": "tiny"}
    with pytest.raises(Refused, match=r"--gpus_per_actor 1: .* 0 GPUs at most, and there is no autoscaler"):
        generate(Generate(**flags, gpus_per_actor=1.0))


def test_pool_sizes(ray_local):
    size = cluster.pool_size
    assert size(None, 1, 100, scaler((1, 3))) == 3
    assert size((1, 2), 1, 100, scaler((1, 3))) == 2
    assert size((1, 8), 1, 100, scaler((1, 3))) == 8  # the file may be raised while it runs
    assert size(None, 1, 2, scaler((1, 3))) == 2
    with pytest.raises(Refused, match=r"--num_workers 4: .* can have 3 actors with 1 GPUs each at most"):
        size((4, 8), 1, 100, scaler((1, 3)))
    with pytest.raises(Refused, match=r"--gpus_per_actor 2: .* its autoscaler can bring nodes with 1;"):
        size(None, 2, 100, scaler((1, 3)))
    assert size((2, 5), 0, 100) == 5


def test_the_line_says_what_it_waits_for_and_after_ten_minutes_where_to_look(monkeypatch, capsys):
    now, up, actors = [0.0], [0], [0]
    monkeypatch.setattr(autoscaling.time, "monotonic", lambda: now[0])
    waiting = Waiting(scaler((1, 4)), wanted=4, workers_up=lambda: up[0])
    shown = Progress(100, 0, lambda: actors[0], waiting)
    now[0] = 40
    assert shown.describe() == "0 of 4 GPU workers up, waiting for the autoscaler, 40 s"
    for now[0] in (601, 611):
        assert shown.describe().startswith("0 of 4 GPU workers up, waiting")
    assert re.findall(r"no GPU worker came in 10 minutes: .* in monitor.log", capsys.readouterr().err) != []
    up[0] = 1
    assert shown.describe() == "1 of 4 GPU workers up, loading the model, 611 s"
    actors[0] = 1
    shown.add(10, 0)
    assert "10 of 100 images" in shown.describe()
    assert shown.describe().endswith("1 actors up")
    up[0], actors[0], now[0] = 0, 0, 631  # taken away
    assert shown.describe() == "10 of 100 images, 0 of 4 GPU workers up, waiting for the autoscaler, 20 s"
    assert capsys.readouterr().err == ""


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
    assert len(read_tree(tmp_path / "output")) == check_index_is_true(tmp_path / "output") == IMAGES
    assert "(raylet)" not in out + err  # Ray's own words about actors that have no place
    assert wait_for(lambda: head.nodes() == 1, 120)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--gpus_per_actor", "2"], "nodes with 0 GPUs at most, and its autoscaler can bring nodes with 1"),
        (["--gpus_per_actor", "1", "--num_workers", "5"], "can have 3 actors with 1 GPUs each at most"),
    ],
)
def test_more_than_the_autoscaler_can_bring_is_refused(head, tmp_path, flags, why):
    driver = start_cli("generate", *FLAGS, *flags, "--address", head.address, cwd=tmp_path, RAY_AUTH_MODE="token")
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 2
    assert why in err
    assert head.nodes() == 1
