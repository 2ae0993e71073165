"""Every scheduler that diffusers has: the images are those of its own pipeline, or none is generated."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from actors import pipelines, tiny
from actors.errors import ModelError
from actors.generator import ImageGenerator
from actors.recipe import Capture

SCHEDULERS = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith(("Flax", "Karras"))
)
SIZE = {"height": 64, "width": 64}


def model(folder: Path, family: str, scheduler: str, **config: Any) -> Path:
    """The tiny model of a family with another scheduler."""
    shutil.copytree(tiny.folder(family), folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", scheduler]}))
    file = folder / "scheduler/scheduler_config.json"
    there = json.loads(file.read_text()) if family == "sdxl" else {"num_train_timesteps": 1000, "shift": 1.0}
    file.write_text(json.dumps({**there, "_class_name": scheduler, **config}))
    return folder


def loaded(recipe_for, path: Path, family: str, steps: int, *captures: Capture) -> ImageGenerator:
    flags = {"max_inference_steps": steps, "save_steps": (str(steps),), "batch_size": 1, **SIZE}
    recipe = recipe_for(model_type=family, model_path=str(path), **flags)
    return ImageGenerator(recipe, captures or [Capture(steps)], threads=1)


def bare(pipe: Any, steps: int, **more: Any) -> Any:
    noise = torch.Generator("cpu").manual_seed(7)
    if isinstance(pipe, diffusers.FluxPipeline):
        more = {"max_sequence_length": pipe.tokenizer_2.model_max_length, **more}
    call = {"num_inference_steps": steps, "guidance_scale": 0.0, "generator": [noise], **SIZE, **more}
    return pipe("a red car", **call).images[0]


@pytest.mark.parametrize(
    ("scheduler", "config", "calls"),
    [
        ("HeunDiscreteScheduler", {"timestep_spacing": "linspace"}, {1: 2, 4: 8, 7: 14, 8: 15}),
        ("KDPM2DiscreteScheduler", {"timestep_spacing": "linspace"}, {1: 2, 4: 8, 7: 14, 8: 15}),
        ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, {1: 2, 4: 8, 7: 14, 8: 15}),
        ("PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}, {1: 2, 4: 5, 7: 8, 8: 9}),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, {1: 1, 4: 4, 7: 7, 8: 8}),
    ],
)
def test_a_step_leads_from_one_noise_level_to_the_next(scheduler, config, calls, tmp_path, recipe_for):
    """The latents are those after the step's last call of the model, however many it takes."""
    path = model(tmp_path / "model", "sdxl", scheduler, **config)
    captures = [Capture(step) for step in calls]
    generator = loaded(recipe_for, path, "sdxl", 8, *captures)
    rows = generator({"prompt": ["a red car"], "seed": [7], "captures": [list(range(len(captures)))]})
    taken = generator.pixels(["a red car"], [7], captures)
    seen: dict[int, torch.Tensor] = {}

    def keep(pipe, index, timestep, given):
        seen[index + 1] = given["latents"].clone()
        return given

    pipe = generator.model.pipe
    image = bare(pipe, 8, callback_on_step_end=keep)
    assert max(seen) == calls[8]
    assert np.array_equal(taken[Capture(8)][0], np.asarray(image))
    for step, call in calls.items():
        own, _ = pipelines.decode_to_uint8(generator.model, seen[call])
        assert np.array_equal(taken[Capture(step)][0], own[0]), step
    pipe.scheduler.set_timesteps(8)
    levels = list(dict.fromkeys(pipe.scheduler.timesteps.tolist()))
    if len(levels) == 8:
        assert rows["timestep"] == [levels[step - 1] for step in calls]
    if hasattr(pipe.scheduler, "sigmas"):
        assert rows["sigma"] == sorted(rows["sigma"], reverse=True)
        assert rows["sigma"][-1] == 0


@pytest.mark.parametrize(
    ("family", "scheduler", "config", "steps", "said"),
    [
        ("sdxl", "PNDMScheduler", {"skip_prk_steps": False}, 8, "calls the model 17 times for 8 steps"),
        ("sdxl", "LCMScheduler", {"timestep_spacing": "leading"}, 60, "60 steps with LCMScheduler: "),
        ("sdxl", "EulerDiscreteScheduler", {"timestep_spacing": "any"}, 4, "4 steps with EulerDiscreteScheduler: "),
        ("flux", "FlowMatchHeunDiscreteScheduler", {}, 4, "4 steps with FlowMatchHeunDiscreteScheduler: "),
        ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, 4, "noise that no seed decides"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_the_first_prompt(
    family, scheduler, config, steps, said, tmp_path, recipe_for
):
    path = model(tmp_path / "model", family, scheduler, **config)
    with pytest.raises(ModelError, match=said) as raised:
        loaded(recipe_for, path, family, steps)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of schedulers that divide by zero, and are refused or work as in their pipeline
@pytest.mark.parametrize(
    ("family", "scheduler", "spacings", "least"),
    [
        ("sdxl", "EulerDiscreteScheduler", ["leading"], 90),
        ("sdxl", "EulerDiscreteScheduler", ["linspace"], 80),
        ("sdxl", "EulerDiscreteScheduler", ["trailing"], 90),
        ("flux", "FlowMatchEulerDiscreteScheduler", ["leading", "linspace", "trailing"], 12),
    ],
)
def test_every_scheduler_draws_its_own_pipelines_image_or_none(
    family, scheduler, spacings, least, recipe_for, tmp_path
):
    """In 1, 4, 8 and 32 steps; at least `least` cases of them are generated."""
    generator = loaded(recipe_for, model(tmp_path / "model", family, scheduler), family, 1)
    pipe, recipe = generator.model.pipe, generator.recipe
    config = dict(pipe.scheduler.config)
    drawn, refused = [], []
    for name, spacing, steps in itertools.product(SCHEDULERS, spacings, (1, 4, 8, 32)):
        case = f"{name} {spacing} {steps}"
        try:
            pipe.scheduler = getattr(diffusers, name).from_config({**config, "timestep_spacing": spacing})
        except (AttributeError, ImportError, NotImplementedError, TypeError, ValueError) as error:
            refused.append(f"{case} (can't be made: {error})")
            continue
        generator.recipe = generator.model.recipe = dataclasses.replace(recipe, num_inference_steps=steps)
        try:
            generator._try(steps)
        except ModelError as error:
            refused.append(f"{case} ({error})")
            continue
        taken = generator.pixels(["a red car"], [7], [Capture(steps)])[Capture(steps)][0]
        assert np.array_equal(taken, np.asarray(bare(pipe, steps))), case
        drawn.append(case)
    print(*refused, f"{len(drawn)} drawn, {len(refused)} refused", sep="\n")
    assert len(drawn) >= least
