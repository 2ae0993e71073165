"""The shipped tiny models generate what is requested, and accept any other prompt."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from actors import pipelines, tiny
from actors.capture import StepCapture
from actors.generator import ImageGenerator
from actors.recipe import Capture
from tests.conftest import ROOT

FAMILIES = ["sdxl", "flux"]
REFERENCE = ROOT / "tests/data/emoji.png"
NAMES = [
    "dog face", "cat face", "panda", "parrot", "red apple", "watermelon", "pizza", "doughnut", "birthday cake",
    "red heart", "sunflower", "evergreen tree", "house", "bicycle", "police car", "rocket", "soccer ball", "guitar",
    "umbrella", "snowman",
]  # fmt: skip
"""What the reference shows, from left to right."""


def test_together_they_are_16_mb_of_float16():
    files = [file for kind in FAMILIES for file in tiny.folder(kind).rglob("*") if file.is_file()]
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt"}
    assert len(weights) == 8
    assert sum(file.stat().st_size for file in weights) <= 16e6
    for file in weights:
        with safe_open(file, "pt") as opened:
            assert {opened.get_slice(key).get_dtype() for key in opened.keys()} <= {"F16", "I64"}  # noqa: SIM118


@pytest.mark.parametrize("kind", FAMILIES)
def test_they_generate_what_is_requested(recipe_for, kind):
    """For how many of twenty names is the right training image the nearest? By chance for one."""
    recipe = recipe_for(model_type=kind, model_path="tiny", batch_size=len(NAMES))
    family = pipelines.load(recipe)
    sheet = torch.from_numpy(np.array(Image.open(REFERENCE).convert("RGB"))).float() / 127.5 - 1
    images = torch.stack(sheet.split(tiny.SIZE, dim=1)).permute(0, 3, 1, 2)
    wanted = [Capture(step, snapshot) for step, snapshot in ((1, "xt"), (8, "x0"), (32, "xt"))]
    with torch.no_grad(), StepCapture(wanted, 32).attached(family.pipe) as capture:
        pipelines.denoise(family, [family.encode(name) for name in NAMES], [0] * len(NAMES), 32, capture)
        known = family.pipe.vae.encode(images).latent_dist.mean
        drawn = [family.pipe.vae.encode(family.decode(capture.latents[one])).latent_dist.mean for one in wanted]
    right = [
        int((torch.cdist(latents.flatten(1), known.flatten(1)).argmin(1) == torch.arange(len(NAMES))).sum())
        for latents in drawn
    ]
    assert right[2] >= 14, right
    assert right[1] >= 10, right
    assert right[0] < right[2], right


@pytest.mark.parametrize("kind", FAMILIES)
def test_any_prompt_gives_an_image(recipe_for, kind):
    flags = {"max_inference_steps": 2, "save_steps": ("2",), "batch_size": 4}
    generator = ImageGenerator(recipe_for(model_type=kind, model_path="tiny", **flags), [Capture(2)], threads=1)
    prompts = ["", " ", "一只狗在海边", "🐶🐶 👩‍🚀", "\0", "Ünïcode DOG!?", "dog " * 100, "<unk> <|endoftext|> </s>"]
    columns = generator({"prompt": prompts, "seed": [0] * len(prompts), "captures": [[0]] * len(prompts)})
    assert columns["status"] == ["ok"] * len(prompts)
    truncated = dict(zip(prompts, columns["prompt_truncated"], strict=True))
    assert truncated["dog " * 100]
    assert not truncated["Ünïcode DOG!?"]


def test_other_weights_are_another_recipe(recipe_for, tmp_path, monkeypatch):
    import shutil

    before = recipe_for(model_path="tiny").model_revision
    assert before.startswith("builtin:")
    assert before != recipe_for(model_type="flux", model_path="tiny").model_revision
    shutil.copytree(tiny.folder("sdxl"), tmp_path / "tiny_sdxl")
    weights = tmp_path / "tiny_sdxl/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(tiny, "ROOT", tmp_path)
    tiny.revision.cache_clear()
    after = recipe_for(model_path="tiny").model_revision
    tiny.revision.cache_clear()
    assert after != before
