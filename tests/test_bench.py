"""The benchmark's report is right: every variant draws what it says, figures follow from the seconds. No timing."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from actors import bench_models, pipelines, variants
from actors.generator import ImageGenerator
from actors.recipe import Capture
from ray_app import (
    bench_figures,
    bench_machine,
    bench_pool,
    bench_report,
    bench_rows,
    bench_scale,
    bench_work,
    bench_worker,
)
from ray_app.bench import bench, measure
from ray_app.bench_options import VARIANTS, Bench, BenchScale
from ray_app.bench_worker import Interval
from ray_app.cli import main
from ray_app.errors import Refused
from ray_app.index import read_rows
from ray_app.partition import part_names
from ray_app.storage import open_output
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(300)

STEPS = (1, 2, 4)
PROMPTS = ["a dog", "a cat on a mat", "a red car", "a dog", "birds on a wire"]
"""Five slots of four different prompts: a whole batch."""
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
            name: bench_models.build_part(name, config)
            for name, config in bench_models.CONFIGS["full"][model_type].items()
        }
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()} == FULL_SIZE[model_type]


@pytest.mark.parametrize("model_type", ["sdxl", "flux"])
def test_full_draws_without_encoders(model_type, monkeypatch, recipe_for):
    """The same code on a few channels: embeddings come from the prompt alone, and decide the picture."""
    small = {
        name: {**config, **SHRUNK[model_type][name]}
        for name, config in bench_models.CONFIGS["full"][model_type].items()
    }
    monkeypatch.setitem(bench_models.CONFIGS["full"], model_type, small)
    recipe = recipe_for(model_type=model_type, model_path="full", max_inference_steps=2, batch_size=2)
    captures = [Capture(1), Capture(2)]
    generator, again = (ImageGenerator(recipe, captures, threads=1) for _ in range(2))
    assert generator.family.pipe.text_encoder is None
    drawn = generator({"prompt": PROMPTS[:2], "seed": [0, 0], "captures": [[0, 1]] * 2})
    assert drawn["status"] == ["ok"] * 4
    assert len(set(drawn["image"])) == 4
    twice = again({"prompt": PROMPTS[1:2], "seed": [0], "captures": [[0, 1]]})
    assert twice["image"] == drawn["image"][2:]


@pytest.mark.parametrize(("model_type", "part"), [("sdxl", "unet"), ("flux", "transformer")])
def test_mid_draws_like_any_model(model_type, part, recipe_for):
    recipe = recipe_for(model_type=model_type, model_path="mid", max_inference_steps=1, batch_size=1)
    assert (recipe.height, recipe.width, recipe.device) == (256, 256, "cpu")
    generator = ImageGenerator(recipe, [Capture(1)], threads=1)
    millions = sum(p.numel() for p in getattr(generator.family.pipe, part).parameters()) / 1e6
    assert 20 < millions < 35
    drawn = generator({"prompt": ["a dog", "a cat"], "seed": [0, 0], "captures": [[0]] * 2})
    assert drawn["status"] == ["ok", "ok"]
    assert drawn["image"][0] != drawn["image"][1]


@pytest.fixture(scope="module")
def measured(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One round of all four with the tiny model, and the folder of all that they drew."""
    folder = tmp_path_factory.mktemp("bench")
    annotations = folder / "five.json"
    annotations.write_text(json.dumps([{"id": 0, "reference_img_id": 1, "multi_gpt-3.5_opt": PROMPTS}]))
    flags = {"max_inference_steps": 4, "save_steps": tuple(map(str, STEPS)), "num_workers": "1"}
    options = Bench(
        "tiny",
        rounds=1,
        prompts=5,
        json_file=str(annotations),
        arrangement="processes",
        levers=("batch_of_one",),
        **flags,
    )
    report = measure(options, bench_machine.describe(), folder, kept=True)
    return json.loads(json.dumps(report)), folder


def picture(folder: Path, variant: str, step: int, slot: int) -> np.ndarray:
    place = folder / "round0" / variant
    if variant == "proxyqueue":
        return np.array(Image.open(place / f"out/proxy_images_sdxl_step{step}/combined/combined_{slot}_0.jpg"))
    return np.array(Image.open(place / f"step{step}/{slot}.jpg"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def test_the_figures_follow_from_the_seconds(measured):
    report, _ = measured
    assert report["work"] == {"slots": 5, "different": 4, "steps": list(STEPS), "images": 15}
    assert list(report["variants"]) == [*VARIANTS, "batch_of_one"]
    seconds = {name: variant["seconds"] for name, variant in report["variants"].items()}
    for name, variant in report["variants"].items():
        assert len(seconds[name]) == 1
        assert min(seconds[name]) > 0
        assert variant.items() >= bench_report.rates(15, seconds[name]).items()
    assert report["ratios"] == bench_report.ratios(seconds, ("batch_of_one",))
    of_ours = report["proxyqueue"]
    whole = of_ours["end_to_end"]["seconds"]
    assert all(all_ > part for all_, part in zip(whole, seconds["proxyqueue"], strict=True))
    for shares in of_ours["shares_of_rounds"]:
        assert set(shares) == {*bench_worker.WORK, "waiting"}
        assert all(0 < share < 1 for share in shares.values())
    assert of_ours["actors"] == report["variants"]["proxyqueue"]["arrangement"]["processes"] == 1
    assert of_ours["writer"]["milliseconds_an_image"] > 0
    assert 0 < of_ours["had_core"] <= 1
    assert of_ours["gpu_busy_percent"] == [] or report["machine"]["gpu"]
    text = bench_report.text(report)
    assert all(name in text for name in (*VARIANTS, *report["ratios"], "waiting"))


def test_rates_and_ratios_of_several_rounds():
    """Rounds are paired: a ratio is that of one round's seconds, and the median is taken of the ratios."""
    seconds = {
        "separate": [20.0, 44.0, 30.0],
        "callback": [15.0, 11.0, 12.0],
        "proxyqueue": [10.0, 11.0, 12.0],
        "limit": [9.0, 11.0, 9.0],
        "batch_of_one": [18.0, 22.0, 9.0],
    }
    rates = bench_report.rates(60, seconds["proxyqueue"])
    assert rates["images_per_second"] == [pytest.approx(60 / value) for value in (10, 11, 12)]
    assert rates["median_images_per_second"] == pytest.approx(60 / 11)
    assert bench_report.ratios(seconds, ("batch_of_one",)) == {
        "proxyqueue/separate": {"each": [2.0, 4.0, 2.5], "median": 2.5, "min": 2.0, "max": 4.0},
        "proxyqueue/callback": {"each": [1.5, 1.0, 1.0], "median": 1.0, "min": 1.0, "max": 1.5},
        "proxyqueue/limit": {"each": [0.9, 1.0, 0.75], "median": 0.9, "min": 0.75, "max": 1.0},
        "batch_of_one/limit": {"each": [0.5, 0.5, 1.0], "median": 0.5, "min": 0.5, "max": 1.0},
    }


def test_every_variant_draws_what_it_says(measured):
    """Separate runs end where ours ends and differ on the way; the callback script's pictures are ours."""
    _, folder = measured
    for slot in range(5):
        for step in STEPS:
            ours, separate, callback = (
                picture(folder, variant, step, slot) for variant in ("proxyqueue", "separate", "callback")
            )
            assert psnr(ours, callback) > 40
            assert (psnr(ours, separate) > 40) == (step == 4)
    for variant in ("separate", "callback"):
        assert len(list((folder / "round0" / variant).rglob("*.jpg"))) == 15  # equal prompts are drawn again
    for variant in ("limit", "batch_of_one"):  # they save nothing but what is compared
        last = 4 if variant == "limit" else 1  # of the pictures of the last batch
        assert len(list((folder / "round0" / variant).rglob("*.*"))) == last * len(STEPS)


def test_likeness_is_that_of_the_pictures(measured):
    """All that two variants both show of the round."""
    report, folder = measured
    shown = {variant: folder / "round0" / variant for variant in ("limit", "batch_of_one")}
    both = [file.relative_to(shown["batch_of_one"]) for file in shown["batch_of_one"].rglob("*.png")]
    each = sorted(psnr(*(np.array(Image.open(place / file)) for place in shown.values())) for file in both)
    found = report["likeness"]["batch_of_one"]
    assert found["pictures"] == len(each) == len(STEPS)
    assert found["least_psnr"] == (None if math.isinf(each[0]) else pytest.approx(each[0]))
    assert found["median_psnr"] == (None if math.isinf(each[1]) else pytest.approx(each[1]))


def test_the_limit_has_the_generators_latents(recipe_for, tmp_path):
    recipe = recipe_for(model_path="tiny", max_inference_steps=4, batch_size=4)
    captures = [Capture(step) for step in STEPS]
    generator = ImageGenerator(recipe, captures, threads=1)
    slots = [(number, prompt, number) for number, prompt in enumerate(PROMPTS[:3])]
    limit = variants.Limit(generator.family, STEPS, tmp_path)
    with limit.ready(slots):
        limit.draw(slots)
    own = generator.pixels([prompt for _, prompt, _ in slots], [seed for _, _, seed in slots], captures)
    for capture in captures:
        pixels, _ = pipelines.decode_to_uint8(generator.family, limit.latents[capture.step])
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
def test_a_lever_draws_what_the_limit_draws_and_leaves_the_model_as_it_was(recipe_for, tmp_path, lever):
    recipe = recipe_for(model_path="tiny", max_inference_steps=4, batch_size=2)
    family = pipelines.load(recipe)
    slots = [(number, prompt, number) for number, prompt in enumerate(PROMPTS[:2])]

    def draw(name: str) -> tuple[torch.Tensor, bool]:
        variant = variants.VARIANTS[name](family, STEPS, tmp_path)
        with variant.ready(slots):
            variant.warm_up(slots)
            variant.draw(slots)
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


def test_shares_of_work_that_overlaps():
    """Ten seconds of two actors; the second encodes for a second beside its denoising."""
    actors = [
        [Interval("denoising", 100, 104, 3), Interval("decoding", 104, 106, 2)],
        [Interval("denoising", 101, 109, 6), Interval("encoding", 103, 104, 1), Interval("text encoding", 100, 101, 0)],
    ]
    assert bench_worker.had_core(actors) == 12 / 16
    shares = bench_worker.shares(actors, 100, 110)
    assert {name: pytest.approx(share * 20) for name, share in shares.items()} == {
        "text encoding": 1, "denoising": 12, "decoding": 2, "encoding": 1, "waiting": 20 - 6 - 9,
    }  # fmt: skip


def test_slots_are_dealt_in_batches_and_duplicates_are_as_real_ones():
    shares = bench_pool.deal([(number, "", 0) for number in range(7)], 2, batch_size=2)
    assert [[number for number, _, _ in share] for share in shares] == [[0, 1, 4, 5], [2, 3, 6]]
    assert bench_pool.arrangements(4, "cpu") == [bench_pool.Arrangement(4, 1), bench_pool.Arrangement(1, 4)]
    assert bench_pool.arrangements(4, "cuda") == [bench_pool.Arrangement(1, 4)]
    for slots, different in ((42, 40), (4_000, 3_800), (5, 5)):
        assert len(set(bench_work.made_up(slots))) == different


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "full", "device": "cpu"}, "--model full: is for GPUs; on CPUs take mid"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"variants": ("limit", "limit")}, "--variants: name some of them, each once"),
        ({"variants": ("proxyqueue",), "levers": ("compiled",)}, "--levers: name each once, and limit in --variants"),
        ({"work_dir": str(ROOT)}, f"--work_dir {ROOT}: is not empty"),
        ({"json_file": str(ROOT / "ray_app/sample.json"), "prompts": 99}, "--prompts 99: .*sample.json has 30 of them"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags, words):
    def measure(options: Bench) -> None:
        options.check_flags()
        bench(options)

    with pytest.raises(Refused, match=words):
        measure(Bench(**{"model": "tiny", **flags}))


def test_full_without_a_gpu_is_one_line(capsys):
    assert main(["bench", "--model", "full"]) == 2
    assert capsys.readouterr() == (
        "",
        "proxyqueue: --device cuda: this machine has no GPU; on CPUs take --model mid or tiny\n",
    )


def test_images_that_cost_nothing_go_the_real_way(ray_local, tmp_path):
    options = BenchScale(save_steps=("1", "32"), image_bytes=1_000, batch_size=4, num_workers="1")
    figure = bench_figures.measure_images(tmp_path, 10, options)
    assert (figure["slots"], figure["images"]) == (10, 20)
    assert figure["images_per_second"] == pytest.approx(20 / figure["seconds"])
    assert figure["milliseconds_an_image"] == pytest.approx(1000 * figure["seconds"] / 20)
    files = list((tmp_path / "out").rglob("combined_*.jpg"))
    assert [file.stat().st_size for file in files] == [1_000] * 20
    assert len({file.read_bytes() for file in files}) == 20
    assert "10 slots, 20 images" in bench_scale.sentence(figure)


def test_a_half_done_output_is_planned_from_its_middle(tmp_path):
    bench_figures.half_done(tmp_path, 200, rows_a_part=30)
    figure = bench_figures.measure_plan(tmp_path, 200, bench_figures.RESUME_STEPS)
    assert (figure["images_there"], figure["images_to_draw"]) == (100, 100)
    assert figure["peak_mb"] >= figure["before_mb"] > 0
    storage = open_output(str(tmp_path / "out"))
    assert len(part_names(storage, "sdxl")) == 4
    for path in read_rows(storage, "sdxl", ["path"])["path"].to_pylist():
        assert Path(storage.path(path)).stat().st_size == 1


def test_an_index_is_asked_before_and_after_compact(tmp_path):
    bench_figures.many_rows(tmp_path, 1_000, [1, 32], rows_a_part=100)
    before = bench_figures.measure_index(tmp_path, [1, 32], "as it was written")
    compact = bench_figures.measure_compact(tmp_path)
    after = bench_figures.measure_index(tmp_path, [1, 32], "compact")
    assert (compact["parts_before"], compact["parts"], compact["rows"]) == (10, 1, 1_000)
    assert (before["parts"], after["parts"]) == (10, 1)
    for figure in (before, after):
        assert (figure["rows"], figure["one_query_rows"]) == (1_000, 10)
    options = bench_rows.asked(tmp_path / "prompts.json", tmp_path / "out", [1, 32])
    columns = read_rows(open_output(options.output_base_path), "sdxl", ["sha256", "path"]).to_pydict()
    assert len(set(columns["sha256"])) == len(set(columns["path"])) == 1_000
    assert {len(digest) for digest in columns["sha256"]} == {64}


def test_a_jobs_entry_point_measures_in_fresh_processes(tmp_path):
    command = "-m jobs.benchmark scale --parts plan --plan_slots 50 --format json --output report.json --work_dir work"
    result = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    (figure,) = report["figures"]
    assert (figure["slots"], figure["images_there"], figure["images_to_draw"]) == (50, 0, 250)
    assert not list((tmp_path / "work").iterdir())
