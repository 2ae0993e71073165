"""Models whose files are incomplete, cut or others': never a picture of weights or words that are not theirs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors import tiny
from actors.capture import Capture
from actors.errors import ModelError
from actors.generator import ImageGenerator
from actors.pipelines import FAMILIES

FLAGS = {"height": 64, "width": 64, "max_inference_steps": 4, "batch_size": 1, "image_format": "png"}


@pytest.fixture
def folder(request, tmp_path) -> Path:
    """A copy of the tiny model of a family, SDXL's where none is named."""
    return Path(shutil.copytree(tiny.folder(getattr(request, "param", "sdxl")), tmp_path / "model"))


def generator(folder, recipe_for, model_type="sdxl", **flags) -> ImageGenerator:
    recipe = recipe_for(model_type=model_type, model_path=str(folder), **{**FLAGS, **flags})
    return ImageGenerator(recipe, [Capture(4)], threads=1)


def edit(file: Path, change) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


WEIGHTS = {
    ("sdxl", "text_encoder/model"): "encoder.layers.0.mlp.fc1.weight",
    ("sdxl", "text_encoder_2/model"): "text_projection.weight",
    ("sdxl", "unet/diffusion_pytorch_model"): "conv_out.weight",
    ("sdxl", "vae/diffusion_pytorch_model"): "decoder.conv_in.bias",
    ("flux", "text_encoder/model"): "encoder.layers.0.mlp.fc1.weight",
    ("flux", "text_encoder_2/model"): "encoder.block.0.layer.0.SelfAttention.q.weight",
    ("flux", "transformer/diffusion_pytorch_model"): "proj_out.weight",
    ("flux", "vae/diffusion_pytorch_model"): "decoder.conv_in.bias",
}


@pytest.mark.parametrize("damage", ["missing", "renamed", "of another shape"])
@pytest.mark.parametrize(("family", "file"), WEIGHTS)
def test_a_weight_that_is_not_there_is_never_made_up(family, file, damage, tmp_path, recipe_for):
    folder, name = Path(shutil.copytree(tiny.folder(family), tmp_path / "model")), WEIGHTS[family, file]

    def spoil(weights):
        name_there = min((known for known in weights if known.endswith(name)), key=len)
        value = weights.pop(name_there)
        if damage == "renamed":
            weights[f"{name_there}_old"] = value
        elif damage == "of another shape":
            weights[name_there] = torch.cat([value, value])

    edit(folder / f"{file}.safetensors", spoil)
    with pytest.raises(ModelError, match=f"can't be loaded as {family}: ") as raised:
        generator(folder, recipe_for, family)
    assert name.rpartition(".")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_weight_too_many_is_said(folder, recipe_for, capsys):
    edit(folder / "text_encoder/model.safetensors", lambda weights: weights.update(mine=torch.zeros(1)))
    assert generator(folder, recipe_for)
    assert capsys.readouterr().err == (
        "proxyqueue: text_encoder: 1 weights that it does not use, mine among them\n"
    )  # fmt: skip


TOKENIZERS = [("sdxl", "tokenizer"), ("sdxl", "tokenizer_2"), ("flux", "tokenizer"), ("flux", "tokenizer_2")]


@pytest.mark.parametrize("damage", ["no folder", "no vocabulary", "cut"])
@pytest.mark.parametrize(("family", "part"), TOKENIZERS)
def test_a_tokenizer_without_its_words_is_refused(family, part, damage, tmp_path, recipe_for):
    """It would draw the same picture of every prompt."""
    folder = Path(shutil.copytree(tiny.folder(family), tmp_path / "model"))
    vocabulary = folder / part / "tokenizer.json"
    if damage == "no folder":
        shutil.rmtree(folder / part)
    elif damage == "no vocabulary":
        vocabulary.unlink()
    else:
        vocabulary.write_bytes(vocabulary.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f"can't be loaded as {family}: ") as raised:
        generator(folder, recipe_for, family)
    assert "\n" not in str(raised.value)


def test_the_scheduler_that_draws_is_the_one_of_the_pipelines_index(folder, recipe_for):
    """Its own config may name another, which diffusers passes over."""
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "EulerDiscreteScheduler"}))
    made = generator(folder, recipe_for)
    assert made.recipe.scheduler == type(made.family.pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"


def test_a_unet_without_a_size_draws_the_size_that_is_asked_for(folder, recipe_for):
    config = folder / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": None}))
    drawn = generator(folder, recipe_for).pixels(["a dog"], [0], [Capture(4)])[Capture(4)][0]
    bare = FAMILIES["sdxl"].pipeline_class().from_pretrained(folder, dtype=torch.float32)
    bare.set_progress_bar_config(disable=True)
    noise = torch.Generator("cpu").manual_seed(0)
    image = bare("a dog", num_inference_steps=4, guidance_scale=0.0, height=64, width=64, generator=noise).images[0]
    assert np.array_equal(drawn, np.asarray(image))


@pytest.mark.parametrize("blocks", [2, 3, 4, 5])
def test_sizes_go_by_the_models_own_vae(blocks, tmp_path, recipe_for):
    for family, multiple in (("sdxl", max(8, 2 ** (blocks - 1))), ("flux", 2**blocks)):
        folder = Path(shutil.copytree(tiny.folder(family), tmp_path / family))
        config = folder / "vae/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [8] * blocks}))
        card = recipe_for(model_type=family, model_path=str(folder), height=multiple * 3, width=multiple)
        assert (card.height, card.width) == (multiple * 3, multiple)
        with pytest.raises(
            Exception, match=f"--width {multiple * 3 // 2}: {family} draws multiples of {multiple} pixels"
        ):
            recipe_for(model_type=family, model_path=str(folder), height=multiple, width=multiple * 3 // 2)


def test_a_file_of_weights_is_no_model(tmp_path, recipe_for):
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match=r"x.safetensors: is a file, and --model_path takes the folder of a diffusers"):
        recipe_for(model_path=str(tmp_path / "x.safetensors"))
