"""A device that no longer answers: what torch raises then, in each stage of a real tiny pipeline."""

import dataclasses
import os

import pytest
import torch
from torch._inductor.exc import InductorError

from actors import device, pipelines
from actors.errors import DeviceLost, DeviceUnfit, ModelError
from actors.generator import ImageGenerator
from actors.recipe import Capture, fingerprint

ILLEGAL = "CUDA error: an illegal memory access was encountered"
BATCH = {"prompt": ["a dog", "a cat"], "seed": [0, 0], "captures": [[0], [0]]}
PARTS = ["unet", "text_encoder", "vae.decoder"]


def dead() -> None:
    raise torch.AcceleratorError(ILLEGAL)


def break_part(generator: ImageGenerator, name: str, error: Exception) -> None:
    """From now on a part of the model raises."""

    def fail(*_: object) -> None:
        raise error

    _module(generator, name).register_forward_pre_hook(fail)


def _module(generator: ImageGenerator, name: str) -> torch.nn.Module:
    part, _, inner = name.partition(".")
    return getattr(generator.model.pipe, part).get_submodule(inner)


@pytest.fixture
def generator(recipe_for) -> ImageGenerator:
    recipe = recipe_for(model_path="tiny", max_inference_steps=1, save_steps=("1",))
    return ImageGenerator(recipe, [Capture(1)], threads=1)


@pytest.mark.parametrize("part", PARTS)
def test_a_device_that_is_lost_fails_no_prompt(generator, part):
    break_part(generator, part, torch.AcceleratorError(f"{ILLEGAL}\nSearch for `cudaErrorIllegalAddress' somewhere"))
    generator.probe = dead
    with pytest.raises(DeviceLost, match=f"^{ILLEGAL}$"):
        generator(BATCH)


@pytest.mark.parametrize("part", PARTS)
def test_an_error_after_which_the_device_answers_is_the_prompts_own(generator, part):
    break_part(generator, part, torch.AcceleratorError(ILLEGAL))
    drawn = generator(BATCH)
    assert drawn["status"] == ["failed", "failed"]
    assert drawn["error_type"] == ["AcceleratorError"] * 2


def test_a_lack_of_memory_is_no_lost_device():
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert device.find_loss(full) is None
    assert isinstance(device.find_loss(dead), torch.AcceleratorError)
    assert device.find_loss(device.make_probe("cpu")) is None


@pytest.mark.parametrize("where", ["denoise", "decode_to_uint8"])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"), DeviceUnfit),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 12020)."), DeviceUnfit),
        (InductorError(RuntimeError("Failed to find C compiler."), None), DeviceUnfit),
        (IndexError("index out of range in self"), ModelError),
    ],
)
def test_what_shows_at_the_first_kernel_shows_while_loading(generator, monkeypatch, where, error, kind):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipelines, where, fail)
    with pytest.raises(kind):
        ImageGenerator(generator.recipe, [Capture(1)], threads=1)


def test_a_device_that_answers_nothing_is_unfit_before_a_model_is_loaded(generator, monkeypatch):
    monkeypatch.setattr(device, "make_probe", lambda name: dead)
    monkeypatch.setattr(pipelines, "load", None)
    with pytest.raises(DeviceUnfit, match=f"^{ILLEGAL}$"):
        ImageGenerator(generator.recipe, [Capture(1)], threads=1)


def test_deterministic_kernels_are_used_where_the_recipe_says_so(generator, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # restored at the end
    usual = generator(BATCH)["image"]
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        recipe = dataclasses.replace(generator.recipe, deterministic=True)
        assert recipe.fingerprint() != generator.recipe.fingerprint()
        assert ImageGenerator(recipe, [Capture(1)], threads=1)(BATCH)["image"] == usual  # CPUs have no others
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        device.set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_recipe_without_deterministic_kernels_has_the_fingerprint_of_before(generator):
    values = dataclasses.asdict(generator.recipe)
    for later in ("deterministic", "vae_path", "vae_revision"):
        del values[later]
    assert generator.recipe.fingerprint() == fingerprint(values)


def test_hardware_is_named_with_what_torch_was_built_for():
    here = device.hardware("cpu")
    assert (here["device"], here["torch"]) == ("CPU", torch.__version__)
    assert here["capability"]
