"""Models whose files are incomplete, cut or others': never an image from another model's weights or tokenizers."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors import checksums, tiny
from actors.capture import Capture
from actors.errors import ModelError
from actors.families import FAMILIES
from actors.generator import ImageGenerator
from actors.pipelines import dtype_argument, pipeline_class

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


def renamed(folder, parts, variant) -> None:
    """Give the weights of these parts a variant's name."""
    for part in parts:
        for weights in (folder / part).glob("*.safetensors"):
            weights.rename(weights.with_suffix(f".{variant}.safetensors"))


PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("parts", "variant"), [(PARTS, "bf16"), (PARTS[:1] + PARTS[2:], "fp16"), (PARTS[1:2], "fp16"), (PARTS[2:3], "ema")]
)
def test_each_part_is_loaded_of_the_variant_that_it_has(parts, variant, folder, recipe_for):
    """As diffusers does: those of a part's own variant, or its files without one."""
    plain = generator(folder, recipe_for).pixels(["a dog"], [0], [Capture(4)])[Capture(4)]
    renamed(folder, parts, variant)
    for asked in ({}, {"variant": variant}):
        made = generator(folder, recipe_for, **asked)
        assert made.recipe.variant == variant
        assert np.array_equal(made.pixels(["a dog"], [0], [Capture(4)])[Capture(4)], plain)


def test_the_requested_variant_is_the_one_that_is_loaded(folder, recipe_for):
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    other = file.with_suffix(".mine.safetensors")
    shutil.copy(file, other)
    edit(other, lambda weights: weights.update({"conv_in.bias": torch.full_like(weights["conv_in.bias"], 7)}))
    for asked, loaded in ((None, False), ("mine", True)):
        made = generator(folder, recipe_for, variant=asked)
        assert made.recipe.variant == asked
        assert (made.model.pipe.unet.conv_in.bias == 7).all().item() is loaded


def test_variants_that_no_pipeline_could_load(folder, recipe_for):
    with pytest.raises(Exception, match="has no weights of --variant fp16, but unet/ has plain ones, vae/ has plain"):
        recipe_for(model_path=str(folder), variant="fp16")
    renamed(folder, ["unet"], "fp16")
    renamed(folder, ["vae"], "bf16")
    with pytest.raises(
        Exception, match="of different variants, unet/ has fp16, vae/ has bf16, text_encoder/ has plain"
    ):
        recipe_for(model_path=str(folder))
    (folder / "vae/diffusion_pytorch_model.bf16.safetensors").rename(folder / "vae/sdxl_vae.safetensors")
    with pytest.raises(Exception, match=r"vae/sdxl_vae.safetensors: not a name of weights; rename it to"):
        recipe_for(model_path=str(folder))
    with pytest.raises(Exception, match="--variant fp16: tiny has none; leave it out"):
        recipe_for(model_path="tiny", variant="fp16")


def test_every_file_that_decides_a_pixel_is_part_of_the_recipe(folder, recipe_for, monkeypatch, tmp_path):
    """One byte of each, the size stays; what no pipeline reads may change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for other in ("README.md", "unet/model.onnx", "unet/diffusion_pytorch_model.fp16.safetensors", "extra/x.json"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"{}")
    revisions = [recipe_for(model_path=str(folder)).model_revision]
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        name, content = file.relative_to(folder).as_posix(), file.read_bytes()
        last = len(content) - 1
        changed = content[:last] + bytes([content[last] ^ 1]) if name.endswith("safetensors") else content + b" "
        file.write_bytes(changed)
        read = name.split("/")[0] in (*PARTS, "scheduler", "tokenizer", "tokenizer_2", "model_index.json")
        read = read and not name.endswith((".onnx", ".fp16.safetensors"))
        revision = recipe_for(model_path=str(folder)).model_revision
        assert (revision == revisions[-1]) is not read, name
        revisions.append(revision)
    assert revisions[0].startswith("sha256:")


def test_weights_are_read_once_for_their_checksums(folder, recipe_for, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[int] = []
    monkeypatch.setattr(checksums, "PIECE", 10**9)
    large = sorted(file for file in folder.rglob("*.safetensors") if file.stat().st_size >= checksums.KEPT_FROM)
    assert large
    first = checksums.of(large, lambda done, total: read.append(total))
    assert read == [sum(file.stat().st_size for file in large)] * len(large)
    assert checksums.of(large, lambda done, total: read.append(total)) == first
    assert len(read) == len(large)
    assert first == [hashlib.sha256(file.read_bytes()).hexdigest() for file in large]
    times = large[0].stat()
    edit(large[0], lambda weights: next(iter(weights.values())).flatten()[:1].add_(1))
    os.utime(large[0], ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and cp -p leave it
    assert checksums.of(large)[0] == hashlib.sha256(large[0].read_bytes()).hexdigest() != first[0]
    for spoilt in ("[1, 2]", "{", "null"):
        (tmp_path / "cache/proxyqueue/checksums.json").write_text(spoilt)
        assert checksums.of(large)[1:] == first[1:]


def test_checksums_are_made_where_nothing_can_be_kept(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    assert checksums.of([file]) == [hashlib.sha256(file.read_bytes()).hexdigest()]


def test_a_worker_generates_with_no_other_weights_than_the_run_began_with(folder, recipe_for):
    """As on a node whose copy of the folder is another."""
    recipe = recipe_for(model_path=str(folder), **FLAGS)
    edit(folder / "unet/diffusion_pytorch_model.safetensors", lambda weights: weights["conv_in.bias"].add_(1))
    with pytest.raises(ModelError, match="its files on this machine are not those that the run began with"):
        ImageGenerator(recipe, [Capture(4)], threads=1)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="this folder does not exist on this machine"):
        ImageGenerator(recipe, [Capture(4)], threads=1)


TOKENIZERS = [("sdxl", "tokenizer"), ("sdxl", "tokenizer_2"), ("flux", "tokenizer"), ("flux", "tokenizer_2")]


@pytest.mark.parametrize("damage", ["no folder", "no vocabulary", "cut"])
@pytest.mark.parametrize(("family", "part"), TOKENIZERS)
def test_a_tokenizer_without_its_words_is_refused(family, part, damage, tmp_path, recipe_for):
    """It would generate the same image for every prompt."""
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


def test_the_scheduler_in_use_is_the_one_of_the_pipelines_index(folder, recipe_for):
    """Its own config may name another, which diffusers passes over."""
    config = folder / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "EulerDiscreteScheduler"}))
    made = generator(folder, recipe_for)
    assert made.recipe.scheduler == type(made.model.pipe.scheduler).__name__ == "EulerAncestralDiscreteScheduler"


def test_a_unet_without_a_size_generates_the_requested_size(folder, recipe_for):
    config = folder / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": None}))
    drawn = generator(folder, recipe_for).pixels(["a dog"], [0], [Capture(4)])[Capture(4)][0]
    bare = pipeline_class(FAMILIES["sdxl"]).from_pretrained(folder, **dtype_argument(torch.float32))
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
            Exception, match=f"--width {multiple * 3 // 2}: must be a multiple of {multiple} for {family}"
        ):
            recipe_for(model_type=family, model_path=str(folder), height=multiple, width=multiple * 3 // 2)


def test_a_file_of_weights_is_no_model(tmp_path, recipe_for):
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match=r"x.safetensors: is a file, and --model_path takes the folder of a diffusers"):
        recipe_for(model_path=str(tmp_path / "x.safetensors"))
