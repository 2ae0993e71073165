"""cluster.yaml and jobs/rayjob.yaml: valid by Ray's own schema, and what its autoscaler would start with them.

The functions of Ray used here are private; Ray is pinned to its minor version.
"""

import copy
import re
import tomllib
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

from ray_app import __version__
from ray_app.submission.submit import check_job
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def aws(monkeypatch) -> dict[str, Any]:
    """The file as `ray up` reads it in a clone: it names files there."""
    monkeypatch.chdir(ROOT)
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "jobs" / "rayjob.yaml").read_text())


def prepared(aws: dict[str, Any]) -> dict[str, Any]:
    config = prepare_config(copy.deepcopy(aws))
    validate_config(config)
    return config


def of_kubernetes(job: dict[str, Any]) -> dict[str, Any]:
    cluster = {"metadata": {"name": "c", "namespace": "n"}, "spec": copy.deepcopy(job["spec"]["rayClusterSpec"])}
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    return config


class NoEvents:
    def log_cluster_scheduling_update(self, *arguments: Any, **more: Any) -> None: ...


def launched(config: dict[str, Any], count: int, **resources: float) -> tuple[dict[str, int], int]:
    """What Ray's scheduler starts, from nothing, for so many requests of these resources; and requests it never can."""
    autoscaling = AutoscalingConfig(copy.deepcopy(config))
    requests = [ResourceRequestByCount(request=ResourceRequestUtil.make(resources), count=count)]
    reply = ResourceDemandScheduler(NoEvents()).schedule(
        SchedulingRequest(
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=requests,
            gang_resource_requests=[],
            cluster_resource_constraints=[],
            current_instances=[],
            idle_timeout_s=autoscaling.get_idle_timeout_s(),
            disable_launch_config_check=True,
        )
    )
    workers = {request.instance_type: request.count for request in reply.to_launch}
    return workers, len(reply.infeasible_resource_requests)


def test_gpu_requests_start_the_type_that_is_switched_on(aws):
    assert launched(prepared(aws), 3, GPU=1.0) == ({"gpu_24gb": 3}, 0)
    types = aws["available_node_types"]
    types["gpu_24gb"]["max_workers"], types["gpu_48gb"]["max_workers"] = 0, 8
    assert launched(prepared(aws), 3, GPU=1.0) == ({"gpu_48gb": 3}, 0)


def test_the_head_never_has_a_gpu_and_nobody_is_there_at_the_start(aws):
    config = prepared(aws)
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 4, "GPU": 0}
    for kind in config["available_node_types"].values():
        assert kind["min_workers"] == 0
    assert launched(config, 100, GPU=1.0)[0] == {"gpu_24gb": config["max_workers"]}
    assert launched(config, 1, GPU=2.0) == ({}, 1)


def test_nothing_is_open_to_the_world(aws):
    config = prepared(aws)
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-FILL_IN"]  # or Ray makes one with SSH for everyone
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text()


def test_workers_are_spot_write_to_s3_and_cache_weights(aws):
    config = prepared(aws)
    for name in ("gpu_24gb", "gpu_48gb"):
        node = config["available_node_types"][name]["node_config"]
        assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert node["IamInstanceProfile"]
    assert config["provider"]["cache_stopped_nodes"] is False
    assert "HF_HOME=/opt/dlami/nvme/huggingface" in config["worker_start_ray_commands"][-1]


def test_what_is_copied_to_the_nodes_is_there(aws):
    mounts = [path for path in aws["file_mounts"].values() if path.startswith("./")]
    assert all((ROOT / path).exists() for path in mounts)
    assert {"./actors", "./ray_app", "./jobs", "./pyproject.toml", "./README.md"} <= set(mounts)


def test_every_dependency_is_installed_in_a_version_that_pyproject_allows(aws):
    text = " ".join(aws["setup_commands"])
    pins = {pin.name: pin for pin in map(Requirement, re.findall(r"'([^']+==[^']+)'", text))}
    needs = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["plot"]]  # `convergence` runs on nodes
    wanted = {needed.name: needed for needed in map(Requirement, needs)}
    assert pins.keys() == wanted.keys()
    for name, pin in pins.items():
        (version,) = pin.specifier
        assert wanted[name].specifier.contains(version.version), name
        assert pin.extras == wanted[name].extras
    python = re.search(r"--python (3\.\d+)", text)[1]  # type: ignore[index]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)


def test_the_rayjob_scales_the_same_way(aws, job):
    config = of_kubernetes(job)
    assert launched(config, 3, GPU=1.0) == ({"gpu-24gb": 3}, 0)
    assert "GPU" not in {
        name for name, amount in config["available_node_types"]["headgroup"]["resources"].items() if amount
    }
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["authOptions"] == {"mode": "token"}
    assert {group["minReplicas"] for group in cluster["workerGroupSpecs"]} == {0}
    assert f"ray[default,data]=={cluster['rayVersion']}" in " ".join(aws["setup_commands"])
    images = {c["image"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
              for c in group["template"]["spec"]["containers"]}  # fmt: skip
    assert images == {f"FILL_IN/proxyqueue:{__version__}"}


def test_the_rayjobs_command_is_one_that_generate_takes(job, tmp_path):
    words = job["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.generate"]
    assert check_job(("generate", *words[3:]), tmp_path) == (words[3:], None)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
