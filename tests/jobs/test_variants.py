"""The variants of the speed benchmark: the bare model has the generator's latents, with every optimization."""

import numpy as np
import pytest
import torch

from actors import pipelines
from actors.generator import ImageGenerator
from actors.recipe import Capture
from jobs.benchmarks import variants

STEPS = (1, 2, 4)
PROMPTS = ["a dog", "a cat on a mat", "a red car"]


def test_the_limit_has_the_generators_latents(recipe_for, tmp_path):
    recipe = recipe_for(model_path="tiny", max_inference_steps=4, batch_size=4)
    captures = [Capture(step) for step in STEPS]
    generator = ImageGenerator(recipe, captures, threads=1)
    slots = [(number, prompt, number) for number, prompt in enumerate(PROMPTS)]
    limit = variants.Limit(generator.model, STEPS, tmp_path)
    with limit.ready(slots):
        limit.generate(slots)
    own = generator.pixels([prompt for _, prompt, _ in slots], [seed for _, _, seed in slots], captures)
    for capture in captures:
        pixels, _ = pipelines.decode_to_uint8(generator.model, limit.latents[capture.step])
        assert np.array_equal(pixels[:3], own[capture])


@pytest.mark.parametrize(
    "lever",
    [
        "batch_of_one",
        "usual_malloc",
        "vae_bfloat16",
        "channels_last",
        "fused_qkv",
        pytest.param("compiled", marks=pytest.mark.slow),
    ],
)
def test_an_optimization_generates_what_the_limit_does_and_restores_the_model(recipe_for, tmp_path, lever):
    recipe = recipe_for(model_path="tiny", max_inference_steps=4, batch_size=2)
    family = pipelines.load(recipe)
    slots = [(number, prompt, number) for number, prompt in enumerate(PROMPTS[:2])]

    def draw(name: str) -> tuple[torch.Tensor, bool]:
        variant = variants.VARIANTS[name](family, STEPS, tmp_path)
        with variant.ready(slots):
            variant.warm_up(slots)
            variant.generate(slots)
            changed = str(family.pipe.vae.dtype) + str(family.denoiser) != before
            changed |= any(m._compiled_call_impl is not None for m in family.denoiser.modules())
            changed |= any(w.ndim == 4 and not w.is_contiguous() for w in family.denoiser.parameters())
            return variant.latents[4], changed or variant.recipe.batch_size == 1

    before = str(family.pipe.vae.dtype) + str(family.denoiser)
    exact = {name: weight.clone() for name, weight in family.pipe.vae.state_dict().items()}
    alone, unchanged = draw("limit")
    drawn, changed = draw(lever)
    assert changed == (lever != "usual_malloc")  # that changes the process: see test_memory
    assert not unchanged
    assert torch.allclose(drawn, alone[-len(drawn) :], atol=1e-3)
    again, _ = draw("limit")
    assert torch.equal(again, alone)
    assert all(torch.equal(weight, exact[name]) for name, weight in family.pipe.vae.state_dict().items())
