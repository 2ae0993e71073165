"""Model cards: what a folder or a cached hub model says before it is loaded."""

import json
import os
import shutil

import pytest

from ray_app.errors import Refused
from ray_app.generation.model_card import read_card


def copy(models, kind, target):
    shutil.copytree(models[kind], target)
    return target


def edit(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_cards_of_saved_folders(models):
    euler = read_card("sdxl", models["sdxl_euler"], None, half=False)
    assert (euler.scheduler, euler.default_size, euler.variant) == ("EulerDiscreteScheduler", 64, None)
    flux = read_card("flux", models["flux"], None, half=False)
    assert (flux.scheduler, flux.default_size) == ("FlowMatchEulerDiscreteScheduler", 512)
    assert euler.revision().startswith("sha256:")
    assert euler.revision() != read_card("sdxl", models["sdxl_ancestral"], None, half=False).revision()


def test_a_changed_scheduler_or_weight_is_another_recipe(models, tmp_path, recipe_for):
    folder = copy(models, "sdxl_euler", tmp_path / "model")
    before = recipe_for(model_path=str(folder))
    assert recipe_for(model_path=str(folder)) == before
    edit(folder, "scheduler/scheduler_config.json", timestep_spacing="trailing")
    after = recipe_for(model_path=str(folder))
    assert after.scheduler_config != before.scheduler_config
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:  # the size stays
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    assert recipe_for(model_path=str(folder)).model_revision != after.model_revision


def test_fp16_files_are_taken_where_they_serve(models, tmp_path):
    folder = copy(models, "sdxl_euler", tmp_path / "both")
    for weights in list(folder.rglob("*.safetensors")):
        shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    assert read_card("sdxl", str(folder), None, half=True).variant == "fp16"
    assert read_card("sdxl", str(folder), None, half=False).variant is None
    for weights in folder.rglob("*.safetensors"):
        if ".fp16" not in weights.name:
            weights.unlink()
    assert read_card("sdxl", str(folder), None, half=False).variant == "fp16"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "no .safetensors weights in unet/; other formats are not loaded"),
        (
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").rename(f / "vae/diffusion_pytorch_model.bin"),
            "no .safetensors weights in vae/; other formats are not loaded",
        ),
        (
            lambda f: (f / "model_index.json").unlink(),
            "no model_index.json; this is not a folder of a diffusers pipeline",
        ),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json can't be read: "),
        (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json is not a JSON object"),
        (
            lambda f: edit(f, "model_index.json", _class_name="FluxPipeline"),
            "holds a FluxPipeline, but --model_type sdxl needs a StableDiffusionXLPipeline; use --model_type flux",
        ),
        (
            lambda f: edit(f, "model_index.json", _class_name="StableDiffusion3Pipeline"),
            "holds a StableDiffusion3Pipeline, but --model_type sdxl needs a StableDiffusionXLPipeline",
        ),
    ],
)
def test_folders_that_are_refused(models, tmp_path, change, message):
    folder = copy(models, "sdxl_euler", tmp_path / "model")
    change(folder)
    with pytest.raises(Refused) as raised:
        read_card("sdxl", str(folder), None, half=False)
    assert str(raised.value).startswith(f"{folder}: {message}")


@pytest.mark.parametrize("path", ["/no/such/folder", "./nothing", "a/b/c", "nothing", ""])
def test_what_is_neither_folder_nor_hub_id(path):
    with pytest.raises(Refused, match="not a folder, and not a hub id"):
        read_card("sdxl", path, None, half=False)


def test_a_revision_is_for_the_hub(models):
    for path in ("tiny", models["flux"]):
        with pytest.raises(Refused, match=r"--revision main: .* is not a hub id; leave it out"):
            read_card("flux", path, "main", half=False)


def test_sizes_and_numbers_of_steps_a_model_cannot_do(recipe_for):
    for flags, message in (
        ({"height": 65}, "--height 65: must be a multiple of 8 for sdxl"),
        ({"width": 0}, "--width 0: must be a multiple of 8 for sdxl"),
        ({"model_type": "flux", "width": 68}, "--width 68: must be a multiple of 8 for flux"),
        ({"max_inference_steps": 61}, "--max_inference_steps 61: EulerAncestralDiscreteScheduler would run 62 steps"),
        ({"max_inference_steps": 1001}, "--max_inference_steps 1001: tiny supports at most 1000 steps"),
    ):
        with pytest.raises(Refused, match=message):
            recipe_for(model_path="tiny", **flags)


def test_flux_reads_no_more_of_a_prompt_than_its_tokenizer_takes(models, tmp_path, recipe_for):
    folder = copy(models, "flux", tmp_path / "model")
    for longest, asked, used in ((48, 256, 48), (48, 20, 20), (512, 256, 256), (int(1e30), 256, 256)):
        edit(folder, "tokenizer_2/tokenizer_config.json", model_max_length=longest)
        recipe = recipe_for(model_type="flux", model_path=str(folder), max_sequence_length=asked)
        assert recipe.max_sequence_length == used
    (folder / "tokenizer_2/tokenizer_config.json").unlink()
    assert recipe_for(model_type="flux", model_path=str(folder)).max_sequence_length == 256


def test_x0_is_refused_by_name_for_a_scheduler_that_has_none(models, tmp_path, recipe_for):
    folder = copy(models, "sdxl_euler", tmp_path / "model")
    edit(folder, "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    assert recipe_for(model_path=str(folder)).scheduler == "DPMSolverMultistepScheduler"
    with pytest.raises(Refused, match="--snapshot both: DPMSolverMultistepScheduler gives no predicted clean image"):
        recipe_for(model_path=str(folder), snapshot="both")


def test_dtypes_by_device(models, recipe_for):
    on_cuda = recipe_for(model_path=models["sdxl_euler"], device="cuda")
    assert (on_cuda.dtype, on_cuda.vae_dtype) == ("float16", "float32")
    flux = recipe_for(model_type="flux", model_path=models["flux"], device="cuda")
    assert (flux.dtype, flux.vae_dtype, flux.batch_size) == ("bfloat16", "bfloat16", 4)


def test_a_hub_model_in_the_cache_is_pinned_to_its_commit(models, tmp_path):
    """The hub client's own cache layout, used offline in another process: it reads its environment on import."""
    import subprocess
    import sys

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--lab--sdxl"
    shutil.copytree(models["sdxl_euler"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from ray_app.generation.model_card import read_card; from ray_app.errors import Refused\n"
        "card = read_card('sdxl', 'lab/sdxl', None, half=False); print(card.path, card.revision(), card.scheduler)\n"
        "try: read_card('sdxl', 'lab/other', None, half=False)\n"
        "except Refused as refused: print(refused)"
    )

    environment = {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "PATH": "/usr/bin:/bin",
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    card, refused = result.stdout.splitlines()
    assert card == f"lab/sdxl {commit} EulerDiscreteScheduler"
    assert refused.startswith("lab/other: not in the local cache, and the hub can't be reached (")
