"""A VAE that replaces the model's own: part of the recipe by its content, and only where it fits the model."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from actors import weights
from actors.errors import ModelError
from actors.families import FAMILIES
from actors.generator import ImageGenerator
from actors.pipelines import load
from actors.recipe import Capture
from ray_app.errors import Refused
from ray_app.generation import memory_estimate, recipes
from ray_app.generation.vae_card import default_dtype, read_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae(models: dict[str, str], tmp_path: Path) -> Path:
    """A model's own VAE as a folder, that says it does not overflow."""
    folder = Path(shutil.copytree(Path(models["sdxl_euler"]) / "vae", tmp_path / "vae"))
    edit(folder, force_upcast=False)
    return folder


def edit(folder: Path, **changes: object) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))


def darken(folder: Path) -> None:
    """Change the weights, and with them every image."""
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "decoder.conv_out.bias": tensors["decoder.conv_out.bias"] - 0.5}, folder / WEIGHTS)


def generate(recipe_for: Callable, model: str, vae: Path | None) -> np.ndarray:
    flags = {"model_path": model, "max_inference_steps": 1, "save_steps": ("1",), "height": 32, "width": 32}
    recipe = recipe_for(**flags, batch_size=1, vae_path=str(vae) if vae else None)
    return ImageGenerator(recipe, [Capture(1)], threads=1).pixels(["a dog"], [0], [Capture(1)])[Capture(1)]


def test_it_decodes_instead_of_the_models_own(models, vae, recipe_for):
    own = generate(recipe_for, models["sdxl_euler"], None)
    assert np.array_equal(generate(recipe_for, models["sdxl_euler"], vae), own)  # the same weights
    darken(vae)
    assert generate(recipe_for, models["sdxl_euler"], vae).mean() < own.mean() - 20


def test_its_content_is_part_of_the_recipe(models, vae, recipe_for):
    """Without the flag the fingerprint is what it was before there was one."""
    plain = recipe_for(model_path=models["sdxl_euler"])
    known = {name: value for name, value in dataclasses.asdict(plain).items() if not name.startswith("vae_")}
    assert recipes.differences(plain, {**known, "vae_dtype": "float32"}) == ([], [])
    with_vae = recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae))
    assert with_vae.fingerprint() != plain.fingerprint()
    assert with_vae == recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae))
    darken(vae)
    changed = recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae))
    (difference,), _ = recipes.differences(changed, dataclasses.asdict(with_vae))
    assert difference.startswith("the VAE's revision: this output has 'sha256:")
    with pytest.raises(ModelError, match="vae: its files on this machine are not those that the run began with"):
        load(with_vae)


def test_half_precision_is_the_default_where_its_config_allows_it(models, vae, recipe_for):
    on_gpu = {"model_path": models["sdxl_euler"], "device": "cuda"}
    assert recipe_for(**on_gpu).vae_dtype == "float32"
    assert recipe_for(**on_gpu, vae_path=str(vae)).vae_dtype == "float16"
    assert recipe_for(**on_gpu, vae_path=str(vae), vae_dtype="float32").vae_dtype == "float32"
    assert recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae)).vae_dtype == "float32"  # on CPUs
    edit(vae, force_upcast=True)
    assert recipe_for(**on_gpu, vae_path=str(vae)).vae_dtype == "float32"
    assert default_dtype(FAMILIES["sdxl"], "float16", {}) == "float32"
    assert default_dtype(FAMILIES["flux"], "bfloat16", {}) == "bfloat16"


def test_the_memory_estimate_follows_it(models, vae):
    model = models["sdxl_euler"]
    own, needed, _ = memory_estimate.needed("sdxl", model, "cuda")
    half, needed_half, _ = memory_estimate.needed("sdxl", model, "cuda", vae_path=str(vae))
    count = memory_estimate.parameters(vae / WEIGHTS)
    assert own - half == 2 * count  # bytes of float16 instead of float32
    assert needed - needed_half > FAMILIES["sdxl"].decoding_bytes * 8 * 512 * 512 / 4
    assert memory_estimate.needed("sdxl", model, "cuda", vae_path="lab/vae")[0] > own  # a published one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 4}, "its latent_channels is 4, that of MODEL is 16"),
        ({"_class_name": "AutoencoderTiny"}, "its class_name is AutoencoderTiny, that of MODEL is AutoencoderKL"),
        ({"scaling_factor": 0.18215}, "its scaling_factor is 0.18215, that of MODEL is "),
        ({"block_out_channels": [16, 32]}, "it decodes 2 pixels per latent, that of MODEL 4"),
    ],
)
def test_one_of_other_latents_is_refused(changes, message, models, vae, recipe_for):
    edit(vae, **changes)
    with pytest.raises(Refused) as raised:
        recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae))
    line = str(raised.value).replace(models["sdxl_euler"], "MODEL")
    assert line.startswith(f"--vae_path {vae}: a VAE of other latents: {message}")
    assert line.endswith("; take one that was made for this model")


def test_what_is_no_vae_is_refused(models, vae, tmp_path):
    model = Path(models["sdxl_euler"])
    for path, revision, message in (
        (model, None, f"--vae_path {model}: holds a pipeline; take its folder vae"),
        (model / "scheduler", None, f"{model}/scheduler: no config.json; this is not a folder of a diffusers VAE"),
        (tmp_path / "none", None, f"--vae_path {tmp_path}/none: not a folder, and not a hub id (owner/name)"),
        (vae, "main", f"--vae_revision main: {vae} is not a hub id; leave it out"),
    ):
        with pytest.raises(Refused) as raised:
            read_vae(str(path), revision)
        assert str(raised.value) == message
    (vae / WEIGHTS).unlink()
    with pytest.raises(Refused, match=r"no \.safetensors weights of a VAE in it"):
        read_vae(str(vae), None)


def test_weights_without_a_variant_come_first():
    plain, half, bf16 = WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"
    assert weights.read_of_vae(["config.json", plain, half, "other.safetensors"]) == ["config.json", plain]
    assert weights.read_of_vae(["config.json", half, bf16]) == ["config.json", half]


def test_a_vae_that_lacks_weights_is_one_line(models, vae, recipe_for):
    tensors = load_file(vae / WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if name != "decoder.conv_out.bias"}, vae / WEIGHTS)
    recipe = recipe_for(model_path=models["sdxl_euler"], vae_path=str(vae))
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, .* decoder\.conv_out\.bias"):
        load(recipe)
