"""Recipes and seeds: what makes two runs the same."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.recipe import LATER, MAX_SEED, Recipe, denoise_id, image_seed
from ray_app.generation import recipes
from ray_app.generation.recipes import default_batch_size
from ray_app.index.rows import read_recipes
from ray_app.output.open import open_output
from tests.conftest import ROOT


def test_fingerprint_moves_with_every_field(recipe_for):
    recipe = recipe_for(model_path="tiny")
    assert recipe.fingerprint() == recipe_for(model_path="tiny").fingerprint()
    others = {
        dataclasses.replace(recipe, **{field.name: "another"}).fingerprint() for field in dataclasses.fields(recipe)
    }
    assert len(others) == len(dataclasses.fields(recipe))
    assert recipe.fingerprint() not in others


@dataclasses.dataclass(frozen=True)
class LaterRecipe(Recipe):
    """What a later version may be: a field more."""

    tiling: bool = dataclasses.field(default=False, metadata=LATER)


def test_a_field_that_comes_later_leaves_what_was_drawn_before_as_it_is(recipe_for):
    recipe = recipe_for(model_path="tiny")
    known = dataclasses.asdict(recipe)
    assert LaterRecipe(**known).fingerprint() == recipe.fingerprint()
    tiled = LaterRecipe(**known, tiling=True)
    assert tiled.fingerprint() != recipe.fingerprint()
    assert recipes.differences(LaterRecipe(**known), known) == ([], [])
    assert recipes.differences(tiled, known) == (["tiling: this output has False, this run requests True"], [])
    assert recipes.differences(recipe, dataclasses.asdict(LaterRecipe(**known))) == ([], [])


def test_the_fingerprints_of_0_1_0_are_the_ones_of_today():
    output = open_output(str(ROOT / "tests/data/output_0.1.0"))
    ((fingerprint, known),) = read_recipes(output, "sdxl").items()
    assert Recipe(**known).fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("model_type", "device", "height", "width", "expected"),
    [
        ("sdxl", "cuda", 512, 512, 8),
        ("sdxl", "cuda", 256, 512, 16),
        ("sdxl", "cuda", 1024, 512, 4),
        ("sdxl", "cuda", 1024, 1024, 2),
        ("sdxl", "cuda", 2048, 2048, 1),
        ("flux", "cuda", 512, 512, 4),
        ("flux", "cuda", 1024, 1024, 1),
        ("sdxl", "cpu", 512, 512, 4),
        ("sdxl", "cpu", 1024, 1024, 4),
    ],
)
def test_default_batches_on_gpus_have_fewer_images_the_more_pixels_these_have(
    model_type, device, height, width, expected
):
    assert default_batch_size(model_type, device, height, width) == expected


def test_a_batch_size_that_is_given_replaces_the_default(recipe_for):
    default = recipe_for(model_path="tiny", device="cuda", height=512, width=1024)
    assert default.batch_size == 4
    assert recipe_for(model_path="tiny", device="cuda", height=512, width=1024, batch_size=3).batch_size == 3


def test_image_seeds_are_the_scripts():
    assert [image_seed("image", 7, query, prompt, 2) for query in (0, 5) for prompt in (0, 3)] == [9] * 4


def test_slot_seeds_are_all_different_and_stable():
    seeds = {
        image_seed("slot", 7, query, prompt, image) for query in range(10) for prompt in range(5) for image in (0, 1)
    }
    assert len(seeds) == 100
    assert image_seed("slot", 7, 3, 1, 0) == int("25ce10a9", 16)  # printf 7/3/1/0 | sha256sum
    assert image_seed("slot", 8, 3, 1, 0) != image_seed("slot", 7, 3, 1, 0)


@given(st.text(), st.text(), st.integers(0, MAX_SEED), st.integers(0, MAX_SEED))
def test_denoise_ids_are_equal_for_equal_prompt_and_seed_only(prompt, other, seed, other_seed):
    same = (prompt, seed) == (other, other_seed)
    assert (denoise_id(prompt, seed) == denoise_id(other, other_seed)) == same


@given(st.integers(0, MAX_SEED), st.integers(0), st.integers(0, 2**15), st.integers(0, 2**15))
def test_slot_seeds_fit_torch(seed, query, prompt, image):
    assert 0 <= image_seed("slot", seed, query, prompt, image) <= MAX_SEED
