"""A model of the hub, offline, from the client's own cache: a recipe's commit is the one that is loaded."""

import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from actors.pipelines import load
from actors.recipe import Recipe
from ray_app import recipes

OLD, NEW = "a" * 40, "b" * 40
WEIGHT = "conv_in.bias"


@pytest.fixture
def main_branch(models, tmp_path, monkeypatch):
    """Two commits of lab/sdxl with other UNet weights; the file with the one that the branch main is at."""
    repository = tmp_path / "models--lab--sdxl"
    for number, commit in enumerate((OLD, NEW)):
        folder = repository / "snapshots" / commit
        shutil.copytree(models["sdxl_euler"], folder)
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({**weights, WEIGHT: torch.full_like(weights[WEIGHT], number)}, file, {"format": "pt"})
    (repository / "refs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # the client reads its variables on import
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "refs" / "main"


def loaded_weight(recipe: Recipe) -> set[float]:
    return set(load(recipe).pipe.unet.state_dict()[WEIGHT].tolist())


def test_the_recipes_commit_is_loaded_after_its_branch_has_moved_on(main_branch, recipe_for):
    main_branch.write_text(OLD)
    recipe = recipe_for(model_path="lab/sdxl")
    assert recipe.model_revision == OLD
    main_branch.write_text(NEW)
    assert loaded_weight(recipe) == {0.0}
    strict, _ = recipes.differences(recipe_for(model_path="lab/sdxl"), vars(recipe))
    assert strict == [f"the model's revision is '{OLD}' there and '{NEW}' here"]


def test_a_commit_that_is_asked_for_is_loaded(main_branch, recipe_for):
    main_branch.write_text(OLD)
    recipe = recipe_for(model_path="lab/sdxl", revision=NEW)
    assert recipe.model_revision == NEW
    assert loaded_weight(recipe) == {1.0}
