"""What doctor finds: on a real Ray, on two real nodes that differ, and of nodes as they would look with GPUs."""

import dataclasses
import importlib.metadata
import shutil
import subprocess
from pathlib import Path

import pytest

from ray_app.cli import main
from ray_app.cluster import node_probe
from ray_app.cluster.gpu_probe import Gpu
from ray_app.errors import Refused
from ray_app.generation import memory_estimate
from ray_app.generation.options import Generate
from ray_app.submission import doctor
from ray_app.submission.options import Doctor
from tests.conftest import run_cli
from tests.support.clusters import auth, cluster
from tests.support.processes import wait_for


@pytest.fixture(scope="module")
def node(ray_local: None) -> node_probe.Node:
    """The one node of the local Ray, as it answers."""
    (found,) = node_probe.probe_nodes()
    return found


def gpu_node(node: node_probe.Node, gigabytes: int, gpus: int = 1) -> node_probe.Node:
    """The same with GPUs."""
    assert node.answer
    answer = {**node.answer, "gpus": [("GPU", gigabytes * 10**9)] * gpus}
    return dataclasses.replace(node, name="w1", gpus=float(gpus), is_driver=False, answer=answer)


def run(**flags) -> Generate:
    return Generate(**flags)


def found(problems) -> list[str]:
    return list(problems)


def test_a_cluster_with_nothing_wrong(ray_local, tmp_path, capsys):
    output = tmp_path / "out"
    code = doctor.doctor(
        Doctor(model_path="tiny", output_base_path=str(output), shared_filesystem=True, num_workers="1")
    )
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["node", "CPUs", "GPUs", "memory", "GPU", "memory", "python", "ray", "torch"]
    assert f"output           {output}: every node writes\n" in out
    assert out.endswith("\nno problems\n")
    assert not list(tmp_path.iterdir())  # the probe is gone, and no output was made


def test_each_problem_is_a_line_and_the_exit_code_is_1(ray_local, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code = doctor.doctor(Doctor(output_base_path=str(tmp_path / "file" / "out")))
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem ")]
    assert code == 1
    assert problems == [
        f"problem          --output_base_path {tmp_path}/file/out: can't be written: {tmp_path}/file is a file",
        "problem          --gpus_per_actor 1: the largest node has 0 GPUs, and no autoscaler can add a larger one;"
        " connect to a cluster with GPUs (--address), or generate on CPUs with --device cpu or --model_path tiny"
        " (without --gpus_per_actor)",
    ]


def test_flags_that_generate_refuses_are_refused(capsys):
    assert main(["doctor", "--num_workers", "0"]) == 2
    assert capsys.readouterr() == ("", "proxyqueue: --num_workers 0: not a number of actors, N or MIN:MAX, from 1\n")


def test_versions_that_differ_are_named_with_what_to_do(node):
    assert node.answer
    assert found(doctor.check_versions([node])) == []
    theirs = {**node.answer["versions"], "torch": "2.12.0", "diffusers": "none", "python": "3.10.2"}
    other = dataclasses.replace(node, name="w1", is_driver=False, answer={**node.answer, "versions": theirs})
    ours = node.answer["versions"]
    assert found(doctor.check_versions([node, other])) == [
        f"node w1: has 3.10.2 python, the driver's has {ours['python']}; install python {ours['python']} there",
        f"node w1: has 2.12.0 torch, the driver's has {ours['torch']} (images would differ in low bits); install torch"
        f" {ours['torch']} there",
        f"node w1: has no diffusers, the driver's has {ours['diffusers']}; install diffusers {ours['diffusers']} there",
    ]
    cuda = {**ours, "torch": ours["torch"].partition("+")[0] + "+cu128", "python": ours["python"] + "0"}
    same = dataclasses.replace(other, answer={**node.answer, "versions": cuda})
    assert found(doctor.check_versions([node, same])) == []


def test_a_node_that_does_not_answer(node):
    silent = dataclasses.replace(node, name="w1", answer=None)
    (line,) = doctor.check_answers([node, silent])
    assert line.startswith("node w1: gave no answer within 120 s")
    assert found(doctor.check_versions([node, silent])) == []


@pytest.mark.parametrize(
    ("flags", "gigabytes", "problem"),
    [
        ({"model_type": "sdxl"}, 24, None),
        ({"model_type": "flux"}, 48, None),
        ({"model_type": "flux"}, 24, "GPU 0 has 24 GB and black-forest-labs/FLUX.1-schnell needs about 37 GB; use"
         " larger GPUs, or --model_type sdxl"),
        ({"model_type": "sdxl", "gpus_per_actor": 0.5}, 24, "GPU 0 has 24 GB and stabilityai/sdxl-turbo needs about 15"
         " GB for each of 2 actors; raise --gpus_per_actor"),
        ({"model_type": "sdxl"}, 12, "GPU 0 has 12 GB and stabilityai/sdxl-turbo needs about 15 GB; use larger GPUs"),
    ],
)  # fmt: skip
def test_whether_the_model_fits_a_gpu(flags, gigabytes, problem, node):
    asked = run(**flags)
    _, needs, _ = memory_estimate.needed(asked.model_type, asked.model(), "cuda")
    expected = [f"node w1: {problem}"] if problem else []
    assert found(doctor.check_model(asked, [node, gpu_node(node, gigabytes)], needs)) == expected


def test_whether_the_model_fits_the_memory_of_a_machine_without_gpus(node):
    asked = run(model_type="flux", device="cpu", num_workers="4")
    _, needs, _ = memory_estimate.needed("flux", asked.model(), "cpu")
    large = dataclasses.replace(node, name="w1", cpus=8.0, memory=150e9)
    assert found(doctor.check_model(asked, [large], needs)) == [
        "node w1: has 150 GB of memory free and 4 actors with black-forest-labs/FLUX.1-schnell need about 274 GB;"
        " --num_workers 2"
    ]


def test_a_models_size_is_read_from_its_own_files(models, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(models["sdxl_euler"])
    parts = {name: getattr(pipe, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    counts = {name: sum(tensor.numel() for tensor in part.state_dict().values()) for name, part in parts.items()}
    weights, _, counted = memory_estimate.needed("sdxl", models["sdxl_euler"], "cuda")
    assert counted
    assert weights == pytest.approx(2 * sum(counts.values()) + 2 * counts["vae"], rel=0.01)  # the VAE in float32
    broken = Path(shutil.copytree(models["sdxl_euler"], tmp_path / "model"))
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(Refused, match="can't be read as safetensors; download it again"):
        memory_estimate.needed("sdxl", str(broken), "cuda")


def test_a_model_folder_that_a_node_lacks(node, tmp_path):
    asked = run(model_path=str(tmp_path), device="cpu")
    lacking = dataclasses.replace(node, name="w1", answer=node_probe.probe_node(str(tmp_path / "none"), None))
    assert found(doctor.check_model(asked, [lacking], 1.0)) == [
        f"node w1: has no {tmp_path}; copy it there, or pass a hub id as --model_path"
    ]


@pytest.mark.slow
def test_two_nodes_of_which_one_has_another_version_and_another_output(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    own = "mount -t tmpfs tmpfs " + str(output)
    if subprocess.run(["unshare", "--mount", "sh", "-c", own], capture_output=True).returncode:
        pytest.skip("no filesystem can be mounted here")
    old = tmp_path / "old" / "diffusers-0.1.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: diffusers\nVersion: 0.1\n")
    flags = ["--model_path", "tiny", "--output_base_path", str(output), "--num_workers", "9"]
    with cluster("--num-cpus=2") as two:
        two.start(
            f"--address={two.address}", "--num-cpus=1", "--num-gpus=1",
            within=["unshare", "--mount", "sh", "-c", f'{own} && exec "$@"', "sh"], PYTHONPATH=str(old.parent),
        )  # fmt: skip
        asked = ["doctor", "--address", two.address, *flags]
        ray_version = importlib.metadata.version("ray")
        wait_for("doctor sees both nodes", lambda: run_cli(*asked, **auth(False)).stdout.count(ray_version) == 2, 90)
        shared = run_cli(*asked, "--shared_filesystem", **auth(False))
        alone = run_cli(*asked, **auth(False))
    assert (shared.returncode, shared.stderr) == (1, "")
    lines = [line for line in shared.stdout.splitlines() if line.startswith("problem ")]
    assert [line.split(": ", 1)[1][:40] for line in lines] == [
        "has 0.1 diffusers, the driver's has 0.42",
        f"{output} is not the same folder there"[:40],
        "each actor reserves one CPU, and the clu",
    ]
    assert "unknown" in shared.stdout  # the memory of a GPU that is none
    assert "is not the same folder" not in alone.stdout
    assert f"output           {output}: the driver's node writes" in alone.stdout
    assert not list(output.iterdir())


@pytest.mark.parametrize(
    ("gpu", "problem"),
    [
        (Gpu("w1", 0, "H100", free=80 * 10**9, total=80 * 10**9, ecc_errors=0), None),
        (Gpu("w1", 0, "H100", free=None, total=None), None),
        (Gpu("w1", 1, error="no kernel image"), "GPU 1 can't be used: no kernel image; generate leaves it out"),
        (
            Gpu("w1", 2, ecc_errors=3),
            "GPU 2 has 3 uncorrected ECC errors; reset it, or replace it if they come again",
        ),
        (
            Gpu("w1", 3, free=9 * 10**9, total=80 * 10**9),
            "GPU 3 has only 9 GB free: other processes use 71 GB; end them",
        ),
        (Gpu("w1", 0, free=9 * 10**9, total=10 * 10**9), None),  # too small in any case, which is told elsewhere
    ],
)
def test_what_trying_a_gpu_finds(gpu, problem):
    assert found(doctor.check_gpus(run(), [gpu], 15e9)) == ([f"node w1: {problem}"] if problem else [])


def test_gpus_are_listed_by_kind():
    gpus = [Gpu("w1", 0, "H100", driver="580"), Gpu("w2", 0, "H100", driver="580"), Gpu("w2", 1, error="lost")]
    assert doctor._tried(gpus, ["w3"]) == [
        "GPUs tried       2 x H100, driver 580",
        "GPUs not tried   in use, or no answer: node w3",
    ]
