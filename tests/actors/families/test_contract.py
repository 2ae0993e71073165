"""What every family of models keeps to, on a pipeline with random weights: each image is the pipeline's own."""

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from actors import pipelines, random_weights, weights
from actors.capture import StepCapture
from actors.families import FAMILIES
from actors.generator import ImageGenerator
from actors.pipelines import Model, dtype_argument, pipeline_class
from actors.recipe import FAMILY_FIELDS, FLOW_MATCH, RETURNS_X0, Capture, Recipe
from ray_app.generation import memory_estimate
from tests.conftest import run_python

STEPS = 3
CAPTURES = [Capture(step, snapshot) for snapshot in ("xt", "x0") for step in range(1, STEPS + 1)]
PROMPTS = ["a dog on a beach", "a red car, 中文 🎉", "a man with an umbrella"]
SIZE = {"height": 64, "width": 64}


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    """Each family."""
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of the family with random weights, as save_pretrained leaves it."""
    path = tmp_path_factory.mktemp(name)
    random_weights.build(random_weights.MID, name, {"default": torch.float32}, "cpu").save_pretrained(path)
    yield path
    shutil.rmtree(path)  # some 100 MB


@pytest.fixture(scope="module")
def bare(name: str, folder: Path) -> Any:
    """`load_bare` in float32."""
    return load_bare(name, folder, torch.float32)


@pytest.fixture
def recipe(name: str, folder: Path, recipe_for: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe of the family's random model with other flags."""

    def resolve(**flags: Any) -> Recipe:
        steps = {"max_inference_steps": STEPS, "save_steps": (str(STEPS),)}
        fixed = {"model_type": name, "model_path": str(folder), "image_format": "png", **SIZE, **steps}
        return recipe_for(**{**fixed, "max_sequence_length": 64, "batch_size": 1, **flags})

    return resolve


@dataclasses.dataclass
class OwnRun:
    """What a run of the bare pipeline gave: its image, and by step its latents and what it predicted as clean ones."""

    image: np.ndarray
    xt: dict[int, torch.Tensor]
    x0: dict[int, torch.Tensor]


def load_bare(name: str, folder: Path, dtype: torch.dtype) -> Any:
    """Diffusers' own pipeline, without anything of this project."""
    pipe = pipeline_class(FAMILIES[name]).from_pretrained(folder, **dtype_argument(dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run_bare(pipe: Any, model: Model, prompt: str, seed: int) -> OwnRun:
    """One prompt through the bare pipeline, which encodes it and decodes the image itself."""
    recipe = model.recipe
    xt: dict[int, torch.Tensor] = {}
    x0: dict[int, torch.Tensor] = {}

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        xt[index + 1] = tensors["latents"].clone()
        return tensors

    step = pipe.scheduler.step

    def predict(output: torch.Tensor, timestep: Any, sample: torch.Tensor, generator: Any = None, **more: Any) -> Any:
        # of noise and of velocity alike, where the sample is x0 plus sigma times what is predicted
        sigma = pipe.scheduler.sigmas[len(x0)]
        x0[len(x0) + 1] = sample - sigma * output
        return step(output, timestep, sample, generator=generator, **more)

    pipe.scheduler.step = predict
    try:
        image = pipe(
            prompt=prompt,
            generator=[torch.Generator("cpu").manual_seed(seed)],
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            height=recipe.height,
            width=recipe.width,
            callback_on_step_end=keep,
            **({"negative_prompt": recipe.negative_prompt} if recipe.negative_prompt else {}),
            **model.call_arguments(),
        ).images[0]
    finally:
        del pipe.scheduler.step
    return OwnRun(np.asarray(image), xt, x0)


@pytest.mark.parametrize(("height", "width", "guidance_scale"), [(64, 64, 0.0), (96, 64, 5.0)])
def test_every_step_is_the_pipelines_own(name, bare, recipe, height, width, guidance_scale):
    """Latents and predictions to the last bit; the image of the last step is the one that the pipeline decodes."""
    negative = "blurry" if FAMILIES[name].takes_negative_prompt and guidance_scale else None
    flags = {"height": height, "width": width, "guidance_scale": guidance_scale, "negative_prompt": negative}
    generator = ImageGenerator(recipe(**flags), CAPTURES, threads=1)
    model = generator.model
    own = run_bare(bare, model, PROMPTS[0], 3)
    with StepCapture(CAPTURES, STEPS).attached(model.pipe) as capture:
        pipelines.denoise(model, [model.encode(PROMPTS[0])], [3], STEPS, capture)
    pixels = generator.pixels([PROMPTS[0]], [3], CAPTURES)
    for step in range(1, STEPS + 1):
        assert torch.equal(capture.latents[Capture(step, "xt")], own.xt[step]), step
        assert torch.equal(capture.latents[Capture(step, "x0")], own.x0[step].to(own.xt[step].dtype)), step
        decoded, finite = pipelines.decode_to_uint8(model, own.xt[step])
        assert finite == [True]
        assert np.array_equal(pixels[Capture(step, "xt")], decoded), step
    assert np.array_equal(pixels[Capture(STEPS, "xt")][0], own.image)
    assert np.array_equal(pixels[Capture(STEPS, "x0")][0], own.image)
    assert not np.array_equal(pixels[Capture(1, "x0")], pixels[Capture(1, "xt")])
    assert own.image.shape == (height, width, 3)


def test_in_half_precision_too_with_the_vae_kept_in_its_own(name, folder, recipe, tmp_path):
    """SDXL's pipeline casts its float16 VAE up for each decode and back; ours is loaded in float32 once."""
    family = FAMILIES[name]
    dtype = family.dtypes["cuda"]
    load_bare(name, folder, getattr(torch, dtype)).save_pretrained(tmp_path)
    vae_dtype = family.vae_dtype or dtype
    half = dataclasses.replace(recipe(model_path=str(tmp_path)), dtype=dtype, vae_dtype=vae_dtype)
    generator = ImageGenerator(half, CAPTURES, threads=1)
    assert generator.model.pipe.vae.dtype == getattr(torch, vae_dtype)
    assert generator.model.denoiser.dtype == getattr(torch, dtype)
    (image,) = generator.pixels(PROMPTS[:1], [3], [Capture(STEPS)])[Capture(STEPS)]
    own = run_bare(load_bare(name, tmp_path, getattr(torch, dtype)), generator.model, PROMPTS[0], 3)
    assert np.array_equal(image, own.image)
    shutil.rmtree(tmp_path)


def test_an_image_depends_on_its_prompt_and_seed_alone(recipe):
    """Not on its place in a batch, on its neighbours, or on what fills the batch."""
    generator = ImageGenerator(recipe(batch_size=3), [Capture(1), Capture(STEPS)], threads=1)

    def generate(prompts: list[str], seeds: list[int]) -> list[list[bytes]]:
        columns = generator({"prompt": prompts, "seed": seeds, "captures": [[0, 1]] * len(prompts)})
        assert columns["status"] == ["ok"] * 2 * len(prompts)
        return [columns["image"][start : start + 2] for start in range(0, 2 * len(prompts), 2)]

    (alone,) = generate(PROMPTS[:1], [7])
    assert generate(PROMPTS[:1], [7]) == [alone]
    for place in range(3):
        prompts, seeds = PROMPTS[1:], [1, 2]
        prompts.insert(place, PROMPTS[0])
        seeds.insert(place, 7)
        images = generate(prompts, seeds)
        assert images[place] == alone
        assert len({image for pair in images for image in pair}) == 6
    other_seed, other_prompt = generate([PROMPTS[0], PROMPTS[1]], [8, 7])
    assert not {*other_seed, *other_prompt} & {*alone}


@pytest.mark.parametrize("length", [33, 121])
def test_a_prompt_is_truncated_from_one_token_more_than_its_encoder_reads(recipe, length):
    """Where the family lets the number of tokens be chosen, with fewer tokens than CLIP's 77 and with more."""
    model = pipelines.load(recipe(max_sequence_length=length))
    tokenizer, limit = min(model.family.token_limits(model.pipe, model.recipe), key=lambda pair: pair[1])
    assert limit == (length if model.recipe.max_sequence_length else tokenizer.model_max_length)
    prompts = ["a" + " a" * words for words in range(limit)]
    tokens = [len(tokenizer(prompt, truncation=False, verbose=False).input_ids) for prompt in prompts]
    longest = tokens.index(limit)
    assert [model.is_truncated(prompt) for prompt in prompts[longest : longest + 2]] == [False, True]
    shorter, whole, longer = (model.encode(prompt)["prompt_embeds"] for prompt in prompts[longest - 1 : longest + 2])
    assert not torch.equal(shorter, whole)
    assert torch.equal(whole, longer)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_estimate_is_what_is_loaded(name, folder, recipe, device):
    """In the dtypes of this device; on a GPU it needs the family's own memory besides."""
    on_device = recipe(device=device)
    model = pipelines.load(dataclasses.replace(on_device, device="cpu"))
    loaded = 0
    for part in weights.parts(name):
        loaded += sum(value.numel() * value.element_size() for value in getattr(model.pipe, part).parameters())
    estimated, needed, is_counted = memory_estimate.needed(name, str(folder), device)
    assert is_counted
    assert estimated == pytest.approx(loaded, rel=0.001)
    family = FAMILIES[name]
    batch = memory_estimate.Batch(family.batch_size_at_512, 512, 512)
    on_gpu = memory_estimate.generating(family, batch) + memory_estimate.OVERHEAD
    assert needed - estimated == pytest.approx(memory_estimate.PROCESS if device == "cpu" else on_gpu)


def test_its_data_fit_together(name):
    family = FAMILIES[name]
    assert family.name == name
    assert re.fullmatch("[a-z][a-z0-9]*", name)
    assert re.fullmatch("#[0-9a-f]{6}", family.colour)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", family.default_path)
    assert issubclass(pipeline_class(family), diffusers.DiffusionPipeline)
    assert list(family.published_parameters) == list(weights.parts(name))
    assert family.dtypes.keys() == {"cpu", "cuda"}
    assert {*family.dtypes.values(), family.vae_dtype or "float32"} <= memory_estimate.WIDTHS.keys()
    assert set(family.random_configs) == set(random_weights.NAMES)
    for configs in family.random_configs.values():
        assert list(configs) == [family.denoiser, "vae"]
    assert family.random_scheduler["_class_name"] in RETURNS_X0 | FLOW_MATCH
    assert family.recipe_fields({"max_sequence_length": 8}, None).keys() <= set(FAMILY_FIELDS)
    assert {8, 16, 32} >= {family.size_multiple(8)}


def test_families_can_be_told_apart():
    for values in (
        [family.title for family in FAMILIES.values()],
        [family.colour for family in FAMILIES.values()],
        [family.pipeline for family in FAMILIES.values()],
    ):
        assert len(set(values)) == len(FAMILIES)


def test_the_list_of_families_imports_no_model_library():
    code = "import sys, actors.families; print(sorted({'torch', 'diffusers', 'transformers'} & sys.modules.keys()))"
    assert run_python(code) == "[]\n"
