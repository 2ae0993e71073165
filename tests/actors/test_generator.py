"""ImageGenerator against diffusers' own pipelines: real tiny weights, loaded from local folders."""

import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from actors import generator as generators
from actors import memory, tiny
from actors.capture import StepCapture
from actors.errors import ModelError
from actors.families import FAMILIES
from actors.generator import ImageGenerator, encode
from actors.pipelines import dtype_argument, load, pipeline_class
from actors.recipe import Capture
from actors.timing import Timing, timed

STEPS = (1, 3, 6)
LAST = (Capture(6),)
LAST_OF_ONE = (Capture(1),)
KINDS = ["sdxl_euler", "sdxl_ancestral", "flux"]
PROMPTS = ["a dog on a beach", "a red car, 中文 🎉", "a man with an umbrella", "birds on a wire"]


def make(recipe_for, models, kind, captures=LAST, **flags) -> ImageGenerator:
    size = {"height": 64, "width": 64}  # a Flux folder says no size: its pipeline generates 1024 px
    flags = {"max_inference_steps": 6, "save_steps": ("6",), "image_format": "png", "batch_size": 2, **size, **flags}
    recipe = recipe_for(model_type=kind.split("_")[0], model_path=models[kind], **flags)
    return ImageGenerator(recipe, list(captures), threads=1)


def draw(generator, prompts, seeds, captures=None) -> list[dict]:
    wanted = [list(range(len(generator.captures))) if captures is None else captures] * len(prompts)
    columns = generator({"prompt": prompts, "seed": seeds, "captures": wanted})
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def own_image(models, kind, prompt, seed, **call) -> np.ndarray:
    """What the pipeline itself generates, decoded and converted by itself."""
    pipe = pipeline_class(FAMILIES[kind.split("_")[0]]).from_pretrained(models[kind], **dtype_argument(torch.float32))
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator("cpu").manual_seed(seed)]
    call |= {"max_sequence_length": pipe.tokenizer_2.model_max_length} if kind == "flux" else {}
    image = pipe(prompt=prompt, generator=generator, num_inference_steps=6, output_type="pil", **call).images[0]
    return np.array(image)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 32)])
def test_last_step_is_the_pipelines_own_image(recipe_for, models, height, width):
    generator = make(recipe_for, models, "sdxl_euler", batch_size=1, height=height, width=width)
    (drawn,) = draw(generator, [PROMPTS[0]], [3])
    own = own_image(models, "sdxl_euler", PROMPTS[0], 3, guidance_scale=0.0, height=height, width=width)
    assert pixels(drawn["image"]).shape == (height, width, 3)
    assert np.array_equal(pixels(drawn["image"]), own)


def test_flux_guidance_is_the_pipelines_own(recipe_for, tmp_path):
    """The transformer of FLUX dev takes the guidance as an input; those of schnell and of the tiny Flux have none."""
    pipe = pipeline_class(FAMILIES["flux"]).from_pretrained(tiny.folder("flux"), **dtype_argument(torch.float32))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the weights that the guidance adds
        guided = type(pipe.transformer).from_config({**pipe.transformer.config, "guidance_embeds": True})
    guided.load_state_dict(pipe.transformer.state_dict(), strict=False)
    pipe.transformer = guided
    pipe.save_pretrained(tmp_path)
    model, images = {"flux": str(tmp_path)}, []
    for scale in (2.0, 8.0):  # the pipeline's default is 3.5
        generator = make(recipe_for, model, "flux", batch_size=1, guidance_scale=scale)
        (drawn,) = draw(generator, [PROMPTS[0]], [3])
        own = own_image(model, "flux", PROMPTS[0], 3, guidance_scale=scale, height=64, width=64)
        assert np.array_equal(pixels(drawn["image"]), own)
        images.append(drawn["image"])
    assert images[0] != images[1]


@pytest.mark.parametrize("kind", KINDS)
def test_stops_after_the_last_requested_step_with_the_same_images(recipe_for, models, kind):
    generator = make(recipe_for, models, kind, [Capture(step) for step in STEPS])
    calls = []
    generator.model.denoiser.register_forward_hook(lambda *_: calls.append(1))
    all_steps = draw(generator, PROMPTS[:2], [0, 1])
    assert len(calls) == 6
    calls.clear()
    first_two = draw(generator, PROMPTS[:2], [0, 1], captures=[0, 1])
    assert len(calls) == 3
    assert [row["image"] for row in first_two] == [row["image"] for row in all_steps if row["step"] != 6]


def test_x0_comes_from_the_same_denoise_and_ends_as_xt(recipe_for, models):
    both = [Capture(step, snapshot) for snapshot in ("xt", "x0") for step in STEPS]
    generator = make(recipe_for, models, "sdxl_euler", both)
    rows = {(row["snapshot"], row["step"]): row["image"] for row in draw(generator, PROMPTS[:1], [0])}
    last = [pixels(rows[snapshot, 6]).astype(int) for snapshot in ("x0", "xt")]
    assert abs(last[0] - last[1]).max() <= 1  # the same up to a rounding of floats
    assert rows["x0", 1] != rows["xt", 1]
    plain = make(recipe_for, models, "sdxl_euler", [Capture(step) for step in STEPS])
    assert [rows["xt", step] for step in STEPS] == [row["image"] for row in draw(plain, PROMPTS[:1], [0])]


def test_x0_of_flow_matching_is_sample_minus_sigma_times_velocity(recipe_for):
    """Against the definition: with a straight path from x0 to noise, every step's prediction is x0 itself."""
    pipe = load(recipe_for(model_type="flux", model_path="tiny")).pipe
    clean, noise = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0)).split(1)
    pipe.scheduler.set_timesteps(4, sigmas=[1.0, 0.75, 0.5, 0.25], device="cpu")
    latents, pipe._interrupt = noise, False
    with StepCapture([Capture(2, "x0")], 4).attached(pipe) as capture:
        for index, timestep in enumerate(pipe.scheduler.timesteps):
            latents = pipe.scheduler.step(noise - clean, timestep, latents)[0]
            capture(pipe, index, timestep, {"latents": latents})
            if pipe._interrupt:
                break
    assert torch.allclose(capture.latents[Capture(2, "x0")], clean, atol=1e-5)
    assert "step" not in vars(pipe.scheduler)


def test_rows_describe_their_images(recipe_for, models):
    generator = make(recipe_for, models, "sdxl_euler", [Capture(step) for step in STEPS], image_format="webp")
    rows = draw(generator, ["short", "x" * 100], [0, 0])
    assert [(row["row"], row["step"]) for row in rows] == [(0, 1), (0, 3), (0, 6), (1, 1), (1, 3), (1, 6)]
    assert [row["prompt_truncated"] for row in rows] == [False] * 3 + [True] * 3
    scheduler = EulerDiscreteScheduler.from_pretrained(models["sdxl_euler"], subfolder="scheduler")
    scheduler.set_timesteps(6)
    assert [row["timestep"] for row in rows[:3]] == [scheduler.timesteps[step - 1] for step in STEPS]
    assert [row["sigma"] for row in rows[:3]] == [scheduler.sigmas[step] for step in STEPS]
    assert rows[2]["sigma"] == 0
    assert rows[0]["denoise_seconds"] < rows[2]["denoise_seconds"]
    assert Image.open(io.BytesIO(rows[0]["image"])).format == "WEBP"


def test_each_piece_of_work_is_timed_and_the_columns_are_of_the_same_timer(recipe_for, models):
    generator = make(recipe_for, models, "sdxl_euler", [Capture(3), Capture(6)])
    timings: list[Timing] = []
    generator.on_timing = timings.append
    began = time.time()
    rows = draw(generator, PROMPTS[:2], [0, 1])
    ended = time.time()
    assert [timing.work for timing in timings] == [
        *["text encoding"] * 2, "denoising", *["decoding"] * 2, *["encoding"] * 4,
    ]  # fmt: skip
    assert all(began <= timing.began <= ended for timing in timings)
    assert 0 < sum(timing.seconds for timing in timings) <= ended - began
    assert all(timing.cpu_seconds >= 0 for timing in timings)
    decoded = [timing.seconds / 2 for timing in timings if timing.work == "decoding"]
    assert [row["decode_seconds"] for row in rows] == [*decoded, *decoded]
    assert [row["encode_seconds"] for row in rows] == [one.seconds for one in timings if one.work == "encoding"]


def test_work_that_fails_is_timed_too():
    timings: list[Timing] = []
    with pytest.raises(ValueError, match="no latents"), timed("decoding", timings.append):
        raise ValueError("no latents")
    assert [timing.work for timing in timings] == ["decoding"]
    assert timings[0].seconds > 0


def test_denoise_seconds_of_a_batch_sum_up_to_what_it_took(recipe_for, models):
    generator = make(recipe_for, models, "sdxl_euler", batch_size=8)
    started_at, in_unet = [], []
    generator.model.denoiser.register_forward_pre_hook(lambda *_: started_at.append(time.perf_counter()))
    generator.model.denoiser.register_forward_hook(lambda *_: in_unet.append(time.perf_counter() - started_at[-1]))
    started = time.perf_counter()
    rows = draw(generator, [f"{number} birds on a wire" for number in range(8)], range(8))
    took = time.perf_counter() - started
    assert sum(in_unet) <= sum(row["denoise_seconds"] for row in rows) <= took


def test_one_prompt_that_cannot_be_drawn_costs_no_other(recipe_for, models):
    generator = make(recipe_for, models, "sdxl_poison", [Capture(step) for step in STEPS], batch_size=4)
    good = [row["image"] for row in draw(generator, [PROMPTS[0]], [0])]
    rows = draw(generator, [PROMPTS[0], "a ~ wave", "kaboom", PROMPTS[0]], [0, 0, 0, 0])
    by_prompt = [rows[start : start + 3] for start in range(0, 12, 3)]
    assert [row["image"] for row in by_prompt[0]] == good
    assert [row["image"] for row in by_prompt[3]] == good
    assert {(row["status"], row["error_type"], row["image"]) for row in by_prompt[1]} == {
        ("failed", "NonFiniteLatents", None)
    }
    assert {(row["status"], row["error_type"]) for row in by_prompt[2]} == {("failed", "IndexError")}
    assert "index out of range" in by_prompt[2][0]["error_message"]


def test_a_folder_that_cannot_be_loaded_is_one_line(recipe_for, models, tmp_path):
    import shutil

    folder = tmp_path / "cut"
    shutil.copytree(models["sdxl_euler"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    recipe = recipe_for(model_path=str(folder))
    with pytest.raises(ModelError, match="can't be loaded as sdxl") as raised:
        ImageGenerator(recipe, [Capture(32)])
    assert "\n" not in str(raised.value)


def test_encode_is_deterministic_and_png_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for image_format, quality in (("jpg", 95), ("png", None), ("webp", 80)):
        assert encode(image, image_format, quality) == encode(image, image_format, quality)
    assert np.array_equal(pixels(encode(image, "png", None)), image)
    assert len(encode(image, "jpg", 95)) > len(encode(image, "jpg", 20))


def test_an_image_that_cannot_be_encoded_is_failed_and_costs_no_other(recipe_for, models):
    generator = make(recipe_for, models, "sdxl_euler", image_format="jpg")
    drawn = generator.generate({"prompt": PROMPTS[:2], "seed": [0, 0], "captures": [[0], [0]]})
    drawn[0][0].pixels = np.zeros((1, 65_501, 3), np.uint8)  # a JPEG has 65,500 pixels per side at most
    columns = generator.encode(drawn)
    assert columns["status"] == ["failed", "ok"]
    assert columns["error_type"] == ["OSError", None]
    assert columns["error_message"][0]
    assert columns["image"][0] is None
    assert Image.open(io.BytesIO(columns["image"][1])).size == (64, 64)


def test_embeddings_of_the_prompts_used_last_are_kept_and_no_more(recipe_for, models, monkeypatch):
    monkeypatch.setattr(generators, "EMBEDDINGS_KEPT", 2)
    generator = make(recipe_for, models, "sdxl_euler", batch_size=1)
    encoded = []
    generator.model.pipe.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    for prompt, encodings in (("a", 1), ("b", 2), ("a", 2), ("c", 3), ("a", 3), ("b", 4)):
        generator.prefetch([prompt])  # nothing on CPUs
        generator._prompts.get(prompt)
        assert len(encoded) == encodings, prompt


def test_separate_runs_are_the_pipelines_own_shorter_runs(recipe_for, models):
    """Step 3 of the run is not the run of 3 steps."""
    captures = [Capture(3), Capture(6)]
    separate = make(recipe_for, models, "sdxl_ancestral", captures, mode="separate", batch_size=1)
    once = make(recipe_for, models, "sdxl_ancestral", captures, batch_size=1)
    three, six = draw(separate, PROMPTS[:1], [3])
    assert [image["num_inference_steps"] for image in (three, six)] == [3, 6]
    pipe = pipeline_class(FAMILIES["sdxl"]).from_pretrained(models["sdxl_ancestral"])
    pipe.set_progress_bar_config(disable=True)
    for steps, drawn in ((3, three), (6, six)):
        generator = [torch.Generator("cpu").manual_seed(3)]
        own = pipe(PROMPTS[0], generator=generator, num_inference_steps=steps, guidance_scale=0.0).images[0]
        assert np.array_equal(pixels(drawn["image"]), np.array(own))
    tapped, last = draw(once, PROMPTS[:1], [3])
    assert last["image"] == six["image"]
    assert tapped["image"] != three["image"]


def test_two_threads_that_take_turns_draw_the_same_bytes(recipe_for, models):
    """One batch's files are encoded while the next batch is generated."""
    generator = make(recipe_for, models, "sdxl_ancestral")
    batches = [{"prompt": [prompt], "seed": [seed], "captures": [[0]]} for seed, prompt in enumerate(PROMPTS)]
    alone = [generator(batch)["image"] for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(generator.encode, generator.generate(batch)) for batch in batches]
        assert [one.result()["image"] for one in waiting] == alone


def test_lack_of_memory_while_denoising_halves_the_batch(recipe_for, monkeypatch):
    """A UNet that takes two at a time: what is decoded together stays as it was, as far as the batch allows."""
    monkeypatch.setattr(memory, "release_free_memory", lambda device: None)  # it changes this process's allocator
    recipe = recipe_for(model_path="tiny", max_inference_steps=1, save_steps=("1",), batch_size=4)
    generator = ImageGenerator(recipe, LAST_OF_ONE, threads=1)

    def check(module, arguments):
        if arguments[0].shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    generator.model.pipe.unet.register_forward_pre_hook(check)
    lines: list[str] = []
    generator.on_notice = lines.append
    drawn = generator({"prompt": PROMPTS, "seed": [0] * 4, "captures": [[0]] * 4})
    assert (drawn["status"], drawn["batch_size"]) == (["ok"] * 4, [2] * 4)
    assert (generator.batch_size, lines) == (2, [])


@pytest.mark.parametrize(
    ("most", "widest", "said"),
    [
        (
            2,
            64,
            ["decodes 2 images at a time from now on (low bits may differ); use --batch_size 2 to start with as many"],
        ),
        (1, 16, ["decodes 2 images", "decodes 1 images", "decodes in tiles from now on, which changes pixels"]),
    ],
)
def test_lack_of_memory_while_decoding_makes_no_batch_smaller(recipe_for, monkeypatch, most, widest, said):
    """A decoder that takes some images at a time, of some width of latents: what is decoded fits afterwards."""
    monkeypatch.setattr(memory, "release_free_memory", lambda device: None)  # it changes this process's allocator
    recipe = recipe_for(
        model_path="tiny", max_inference_steps=1, save_steps=("1",), height=128, width=128, batch_size=4
    )
    generator = ImageGenerator(recipe, LAST_OF_ONE, threads=1)
    batch = {"prompt": PROMPTS, "seed": [0] * 4, "captures": [[0]] * 4}
    roomy = generator(batch)
    denoised = []

    def check(module, arguments):
        if arguments[0].shape[0] > most or arguments[0].shape[-1] > widest:
            raise torch.OutOfMemoryError("CUDA out of memory")

    generator.model.pipe.vae.decoder.register_forward_pre_hook(check)
    generator.model.pipe.unet.register_forward_pre_hook(lambda *_: denoised.append(1))
    lines: list[str] = []
    generator.on_notice = lines.append
    for _ in range(2):
        tight = generator(batch)
        assert tight["status"] == ["ok"] * 4
        assert tight["batch_size"] == [4] * 4
    assert (generator.batch_size, len(denoised)) == (4, 2)
    assert len(lines) == len(said)
    for line, part in zip(lines, said, strict=True):
        assert part in line
    for image, wide in zip(tight["image"], roomy["image"], strict=True):
        assert np.abs(pixels(image).astype(int) - pixels(wide).astype(int)).mean() < 24
