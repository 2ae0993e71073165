"""A family that is added by one module and one line: an output of it is generated, kept true, exported and shown."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from actors.families import FAMILIES
from actors.pipelines import dtype_argument
from ray_app.cli import main
from ray_app.errors import OK, Refused
from ray_app.generation import memory_estimate
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.maintenance.clean import clean
from ray_app.maintenance.options import Clean
from tests.conftest import SAMPLE, read_tree
from tests.support import own_family
from tests.support.outputs import check_all_images_exist, newest_rows

pytestmark = pytest.mark.slow
STEPS = 4
GUIDANCE = {"guidance_scale": 3.0, "negative_prompt": "blurry"}


@pytest.fixture(scope="module", autouse=True)
def own() -> Iterator[None]:
    """The one line."""
    FAMILIES["own"] = own_family.FAMILY
    yield
    del FAMILIES["own"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_model")
    own_family.save_model(folder)
    return folder


def options(output: Path, model: Path, **flags: Any) -> Generate:
    place = {"json_file": str(SAMPLE), "output_base_path": str(output), "limit": 3, "num_prompts": 1}
    how = {
        "max_inference_steps": STEPS,
        "save_steps": ("1", "4"),
        "snapshot": "both",
        "image_format": "png",
        **GUIDANCE,
    }
    run = {"model_type": "own", "model_path": str(model), "device": "cpu", "num_workers": "1", "batch_size": 1}
    return Generate(**{**place, **how, **GUIDANCE, **run, **flags})


@pytest.fixture(scope="module")
def made(ray_local: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three queries' images of the family, side by side as xt and x0."""
    output = tmp_path_factory.mktemp("own") / "out"
    assert generate(options(output, model), own_family.OwnWorker) == OK
    return output


def test_its_images_are_its_pipelines_own(made, model):
    assert check_all_images_exist(made, "own") == 3 * 2 * 2
    torch.set_num_threads(1)  # as the worker's
    pipe = StableDiffusionPipeline.from_pretrained(
        model, **dtype_argument(torch.float32), **own_family.FAMILY.load_arguments
    )
    pipe.set_progress_bar_config(disable=True)
    last = [row for row in newest_rows(made, "own") if (row["snapshot"], row["step"]) == ("xt", STEPS)]
    assert len({row["sha256"] for row in last}) == 3
    for row in last:
        noise = [torch.Generator("cpu").manual_seed(row["seed"])]
        own_image = pipe(row["prompt"], num_inference_steps=STEPS, generator=noise, **GUIDANCE).images[0]
        assert np.array_equal(np.asarray(Image.open(made / row["path"])), np.asarray(own_image))


def test_the_same_command_finds_everything_done(made, model, capsys):
    before = read_tree(made)
    assert generate(options(made, model), own_family.OwnWorker) == OK
    assert "nothing to" in capsys.readouterr().out
    assert read_tree(made) == before


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "--deep", "--redraw", "3"],
        ["compact"],
        ["status"],
        ["convergence"],
        ["query", "--preset", "steps"],
        ["export", "--format", "imagefolder"],
        ["export", "--format", "trajectories", "--export_path", "EXPORT"],
        ["export", "--format", "ipcir"],
        ["gallery"],
    ],
    ids=" ".join,
)
def test_commands_take_it_as_any_other(command, made, tmp_path, capsys):
    output = Path(shutil.copytree(made, tmp_path / "out"))
    command = [str(tmp_path / "export") if word == "EXPORT" else word for word in command]
    assert main([*command, "--output_base_path", str(output)]) == OK
    printed = capsys.readouterr().out
    if command[0] in ("convergence", "status", "query"):
        assert "own" in printed
    if command[0] == "gallery":
        assert "proxy_images_own_step4" in (output / "gallery/index.html").read_text()
    assert main(["verify", "--output_base_path", str(output)]) == OK
    assert read_tree(output) == read_tree(made)


def test_clean_removes_its_images(made, tmp_path):
    output = Path(shutil.copytree(made, tmp_path / "out"))
    assert clean(Clean(output_base_path=str(output), model_type="own", yes=True)) == OK
    assert read_tree(output) == {}


def test_built_in_models_that_it_lacks_are_refused(tmp_path):
    for path in ("tiny", "mid"):
        with pytest.raises(Refused, match=f"--model_path {path}: Stable Diffusion has no such model; take a local"):
            generate(options(tmp_path / "out", Path(path), height=64, width=64))


def test_the_memory_that_it_needs_is_known(model):
    weights, needed, is_counted = memory_estimate.needed("own", str(model), "cuda")
    assert is_counted
    batch = memory_estimate.Batch(own_family.FAMILY.batch_size_at_512, 512, 512)
    assert needed - weights == memory_estimate.generating(own_family.FAMILY, batch) + memory_estimate.OVERHEAD
    assert memory_estimate.find_smallest_family() == "own"
