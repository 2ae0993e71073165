"""The models with random weights: as big as the real ones, and every prompt has an image of its own."""

from typing import Any

import pytest
import torch

from actors import random_weights
from actors.families import FAMILIES
from actors.generator import ImageGenerator
from actors.recipe import Capture

PROMPTS = ["a dog", "a cat on a mat"]
FULL_SIZE = {
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863},
    "flux": {"transformer": 11_891_178_560, "vae": 83_819_683},
}
SHRUNK: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "unet": {
            "block_out_channels": (32, 32, 64),
            "attention_head_dim": (2, 2, 4),
            "transformer_layers_per_block": 1,
            "cross_attention_dim": 48,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 40,
        },
        "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "sample_size": 64},
    },
    "flux": {
        "transformer": {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "pooled_projection_dim": 40,
            "axes_dims_rope": (4, 4, 8),
        },
        "vae": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "sample_size": 64},
    },
}


@pytest.mark.parametrize("model_type", ["sdxl", "flux"])
def test_full_is_as_big_as_the_real_models(model_type):
    with torch.device("meta"):
        parts = {
            name: random_weights.build_part(config)
            for name, config in FAMILIES[model_type].random_configs["full"].items()
        }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == FULL_SIZE[model_type]


@pytest.mark.parametrize("model_type", ["sdxl", "flux"])
def test_full_generates_without_encoders(model_type, monkeypatch, recipe_for):
    """The same code on a few channels: embeddings come from the prompt alone, and decide the image."""
    small = {
        name: {**config, **SHRUNK[model_type][name]}
        for name, config in FAMILIES[model_type].random_configs["full"].items()
    }
    monkeypatch.setitem(FAMILIES[model_type].random_configs, "full", small)
    recipe = recipe_for(model_type=model_type, model_path="full", max_inference_steps=2, batch_size=2)
    captures = [Capture(1), Capture(2)]
    generator, again = (ImageGenerator(recipe, captures, threads=1) for _ in range(2))
    assert generator.model.pipe.text_encoder is None
    drawn = generator({"prompt": PROMPTS, "seed": [0, 0], "captures": [[0, 1]] * 2})
    assert drawn["status"] == ["ok"] * 4
    assert len(set(drawn["image"])) == 4
    twice = again({"prompt": PROMPTS[1:2], "seed": [0], "captures": [[0, 1]]})
    assert twice["image"] == drawn["image"][2:]


@pytest.mark.parametrize(("model_type", "part"), [("sdxl", "unet"), ("flux", "transformer")])
def test_mid_generates_like_any_model(model_type, part, recipe_for):
    recipe = recipe_for(model_type=model_type, model_path="mid", max_inference_steps=1, batch_size=1)
    assert (recipe.height, recipe.width, recipe.device) == (256, 256, "cpu")
    generator = ImageGenerator(recipe, [Capture(1)], threads=1)
    millions = sum(p.numel() for p in getattr(generator.model.pipe, part).parameters()) / 1e6
    assert 20 < millions < 35
    drawn = generator({"prompt": ["a dog", "a cat"], "seed": [0, 0], "captures": [[0]] * 2})
    assert drawn["status"] == ["ok", "ok"]
    assert drawn["image"][0] != drawn["image"][1]
