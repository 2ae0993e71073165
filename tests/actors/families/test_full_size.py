"""Every family at full size on a CUDA device without a card: devices, dtypes, memory, and what makes the host wait."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from actors import memory, peaks, pipelines
from actors.families import FAMILIES, sdxl
from actors.generator import ImageGenerator
from actors.recipe import Capture, Recipe
from actors.timing import Timing
from ray_app.generation import memory_estimate
from ray_app.generation.worker import ImageWorker
from tests.support.fake_cuda import Copy, Device, fake_cuda

STEPS = 2
CAPTURES = [Capture(step, snapshot) for snapshot in ("xt", "x0") for step in (1, STEPS)]
GUIDANCES = {"sdxl": (0.0, 5.0), "flux": (0.0, 3.5)}


@dataclasses.dataclass
class Seen:
    """What one batch did on the device."""

    columns: dict[str, list[Any]]
    weights: int
    """Bytes in use before it."""
    peak: int
    waits_in_loop: list[str]
    copies_in_loop: list[Copy]


def generate(generator: ImageGenerator, device: Device) -> Seen:
    """Generate a full batch, and look at what happened between the denoiser's first call and the last step."""
    denoiser, seen = generator.model.denoiser, {}
    prompts = [f"prompt {number}" for number in range(generator.batch_size)]

    def begin_loop(*_: Any) -> None:
        if "loop" not in seen:
            seen["loop"] = len(device.waits), len(device.copies)

    def end_loop(timing: Timing) -> None:
        if timing.work == "denoising":
            waits, copies = seen["loop"]
            seen["waits"], seen["copies"] = device.waits[waits:], device.copies[copies:]

    hook = denoiser.register_forward_pre_hook(begin_loop)
    generator.on_timing = end_loop
    device.begin()
    weights = device.bytes
    columns = generator(
        {"prompt": prompts, "seed": [1] * len(prompts), "captures": [range(len(CAPTURES))] * len(prompts)}
    )
    hook.remove()
    return Seen(columns, weights, device.peak_bytes, seen.get("waits", []), seen.get("copies", []))


def check(name: str, recipe: Recipe, generator: ImageGenerator, device: Device) -> None:
    """Generate a batch; it is right in every respect that needs no card."""
    seen = generate(generator, device)
    assert set(seen.columns["error_message"]) == {None}
    assert seen.columns["status"] == ["ok"] * generator.batch_size * len(CAPTURES)
    for part, module in generator.model.pipe.components.items():
        if isinstance(module, torch.nn.Module):
            dtype = getattr(torch, recipe.vae_dtype if part == "vae" else recipe.dtype)
            assert {(tensor.device.type, tensor.dtype) for tensor in module.parameters()} == {("cuda", dtype)}, part
    assert not seen.waits_in_loop
    assert not [copy for copy in seen.copies_in_loop if copy.waits]
    batch = memory_estimate.Batch(recipe.batch_size, recipe.height, recipe.width, recipe.guidance_scale > 1)
    estimate = seen.weights + memory_estimate.generating(FAMILIES[name], batch, recipe.vae_dtype)
    assert seen.peak <= 1.02 * estimate
    assert seen.peak == pytest.approx(estimate, rel=0.1)


@pytest.fixture
def full(recipe_for: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """A recipe of a family's model of full size on a GPU."""

    def resolve(name: str, **flags: Any) -> Recipe:
        steps = {"max_inference_steps": STEPS, "save_steps": (str(STEPS),)}
        size = {"height": 512, "width": 512}
        return recipe_for(**{"model_type": name, "model_path": "full", "device": "cuda", **steps, **size, **flags})

    return resolve


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_batch_is_generated_on_the_device_without_waiting(name, full):
    recipe = full(name, guidance_scale=GUIDANCES[name][1])
    with fake_cuda() as device:
        check(name, recipe, ImageGenerator(recipe, CAPTURES), device)


@pytest.mark.slow
@pytest.mark.parametrize("size", [512, 1024])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_batch_size_guidance_and_dtype(name, size, full):
    """One model for all that need no other: building it takes longer than generating with it."""
    with fake_cuda() as device:
        for vae_dtype in ("float32", "bfloat16"):
            generator = ImageGenerator(full(name, height=size, width=size, vae_dtype=vae_dtype), CAPTURES)
            for batch_size in (1, 2, 4, 8, 16):
                for guidance_scale in GUIDANCES[name]:
                    change(generator, batch_size=batch_size, guidance_scale=guidance_scale)
                    check(name, generator.recipe, generator, device)
            del generator


def change(generator: ImageGenerator, **fields: Any) -> None:
    """Give a generator another recipe of the same model."""
    generator.recipe = generator.model.recipe = dataclasses.replace(generator.recipe, **fields)
    generator._sizer = memory.BatchSizer(generator.recipe.batch_size, "cuda", pipelines.most_decoded(generator.recipe))
    generator._prompts._prompts.clear()


@pytest.fixture
def mid(recipe_for: Callable[..., Recipe]) -> Iterator[tuple[ImageGenerator, Device]]:
    """A generator of the small SDXL with random weights, on the device."""
    flags = {"model_path": "mid", "device": "cuda", "max_inference_steps": STEPS, "save_steps": (str(STEPS),)}
    recipe = recipe_for(**flags, batch_size=2)
    with fake_cuda() as device:
        yield ImageGenerator(recipe, CAPTURES), device


class Alone(ImageWorker):
    """A worker of no cluster."""

    def __init__(self) -> None:
        self.actor_id, self.prepares = "a" * 32, False

    def _share_of_gpu(self) -> float:
        return 1.0


def test_prompts_of_a_batch_that_waits_are_encoded_for_the_denoising_stream(recipe_for, monkeypatch, tmp_path):
    """On a stream of their own; the other one waits for it on the device, and the host for neither."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where the worker keeps the peak of its memory
    flags = {"model_path": "mid", "device": "cuda", "max_inference_steps": STEPS, "save_steps": (str(STEPS),)}
    recipe, worker, used = recipe_for(**flags, batch_size=2), Alone(), []
    with fake_cuda() as device:
        worker.loaded = generator = worker.load(recipe, CAPTURES, None)
        assert peaks.read(recipe) == peaks.Peak(2, generator.peak)
        generator.model.pipe.text_encoder.register_forward_pre_hook(lambda *_: used.append(device.stream))
        worker.prepare({"prompt": ["prompt 0", "prompt 1", "prompt 0"]})
        assert len(used) == 2
        assert device.stream not in used
        seen = generate(generator, device)
        assert seen.columns["status"] == ["ok"] * 2 * len(CAPTURES)
        assert len(used) == 2  # none was encoded again
        kept = [generator._prompts._prompts[prompt] for prompt in ("prompt 0", "prompt 1")]
        assert {prompt.is_done for prompt in kept} <= set(device.stream.waits_for)
        tensors = [tensor for prompt in kept for tensor in prompt.embeddings.values()]
        assert {tensor.untyped_storage()._cdata for tensor in tensors} <= device.read_by[device.stream]
        assert not seen.waits_in_loop

        def fail(prompt: str) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        change(generator, batch_size=2)
        monkeypatch.setattr(generator.model, "encode", fail)
        worker.prepare({"prompt": ["prompt 0"]})  # the error is the batch's own
        assert set(generate(generator, device).columns["error_type"]) == {"OutOfMemory"}


def test_a_vae_on_the_cpu_is_found(mid):
    generator, device = mid
    generator.model.pipe.vae.to("cpu")
    seen = generate(generator, device)
    assert set(seen.columns["status"]) == {"failed"}
    assert "cpu" in seen.columns["error_message"][0]


def test_latents_of_another_dtype_than_the_vae_are_found(mid, monkeypatch):
    class Uncast(sdxl.SDXL):
        def decode(self, pipe: Any, recipe: Recipe, latents: torch.Tensor) -> torch.Tensor:
            return pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]

    generator, device = mid
    monkeypatch.setattr(generator.model, "family", Uncast())
    seen = generate(generator, device)
    assert set(seen.columns["status"]) == {"failed"}
    assert "type" in seen.columns["error_message"][0]


def test_what_makes_the_host_wait_in_the_loop_is_found(mid):
    generator, device = mid

    def copy_and_read(module: Any, arguments: Any, named: Any) -> None:
        number = torch.ones(3).to("cuda")
        float(number.sum())

    generator.model.denoiser.register_forward_pre_hook(copy_and_read, with_kwargs=True)
    seen = generate(generator, device)
    assert {line.split(":")[0] for line in seen.waits_in_loop} == {"families/test_full_size.py"}
    waiting = {copy.line.split(":")[0] for copy in seen.copies_in_loop if copy.waits}
    assert waiting == {"families/test_full_size.py"}
