"""The speed benchmark's report is right: every variant does what it says, figures follow from seconds. No timing."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actors.timing import Timing
from jobs.benchmarks import pool, timings, work
from jobs.benchmarks import report as reports
from jobs.benchmarks.machine import describe
from jobs.benchmarks.options import VARIANTS, Speed
from jobs.benchmarks.speed import measure, measure_speed
from ray_app.cli import run_module
from ray_app.errors import Refused
from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(300)

STEPS = (1, 2, 4)
PROMPTS = ["a dog", "a cat on a mat", "a red car", "a dog", "birds on a wire"]
"""Five slots of four different prompts: a whole batch."""


@pytest.fixture(scope="module")
def measured(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One round of all five with the tiny model, and the folder with all their images."""
    folder = tmp_path_factory.mktemp("bench")
    annotations = folder / "five.json"
    annotations.write_text(json.dumps([{"id": 0, "reference_img_id": 1, "multi_gpt-3.5_opt": PROMPTS}]))
    flags = {"max_inference_steps": 4, "save_steps": tuple(map(str, STEPS)), "num_workers": "1"}
    options = Speed(
        "tiny",
        rounds=1,
        prompts=5,
        json_file=str(annotations),
        arrangement="processes",
        levers=("batch_of_one",),
        **flags,
    )
    report = measure(options, describe(), folder, kept=True)
    return json.loads(json.dumps(report)), folder


def saved_image(folder: Path, variant: str, step: int, slot: int) -> np.ndarray:
    place = folder / "round0" / variant
    if variant == "proxyqueue":
        return np.array(Image.open(place / f"out/proxy_images_sdxl_step{step}/combined/combined_{slot}_0.jpg"))
    return np.array(Image.open(place / f"step{step}/{slot}.jpg"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.slow
def test_the_figures_follow_from_the_seconds(measured):
    report, _ = measured
    assert report["work"] == {"slots": 5, "different": 4, "steps": list(STEPS), "images": 15}
    assert list(report["variants"]) == [*VARIANTS, "batch_of_one"]
    seconds = {name: variant["seconds"] for name, variant in report["variants"].items()}
    for name, variant in report["variants"].items():
        assert len(seconds[name]) == 1
        assert min(seconds[name]) > 0
        assert variant.items() >= reports.rates(15, seconds[name]).items()
    assert report["ratios"] == reports.ratios(seconds, ("batch_of_one",))
    of_ours = report["proxyqueue"]
    whole = of_ours["end_to_end"]["seconds"]
    assert all(all_ > part for all_, part in zip(whole, seconds["proxyqueue"], strict=True))
    for shares in of_ours["shares_of_rounds"]:
        assert set(shares) == {*timings.WORK, "waiting"}
        assert all(0 < share < 1 for share in shares.values())
    assert of_ours["actors"] == report["variants"]["proxyqueue"]["arrangement"]["processes"] == 1
    assert of_ours["writer"]["milliseconds_an_image"] > 0
    assert 0 < of_ours["had_core"] <= 1
    assert of_ours["gpu_busy_percent"] == [] or report["machine"]["gpu"]
    text = reports.text(report)
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
    rates = reports.rates(60, seconds["proxyqueue"])
    assert rates["images_per_second"] == [pytest.approx(60 / value) for value in (10, 11, 12)]
    assert rates["median_images_per_second"] == pytest.approx(60 / 11)
    assert reports.ratios(seconds, ("batch_of_one",)) == {
        "proxyqueue/separate": {"each": [2.0, 4.0, 2.5], "median": 2.5, "min": 2.0, "max": 4.0},
        "proxyqueue/callback": {"each": [1.5, 1.0, 1.0], "median": 1.0, "min": 1.0, "max": 1.5},
        "proxyqueue/limit": {"each": [0.9, 1.0, 0.75], "median": 0.9, "min": 0.75, "max": 1.0},
        "batch_of_one/limit": {"each": [0.5, 0.5, 1.0], "median": 0.5, "min": 0.5, "max": 1.0},
    }


@pytest.mark.slow
def test_every_variant_draws_what_it_says(measured):
    """Separate runs end where ours ends and differ on the way; the scripts' images are equal to ours."""
    _, folder = measured
    for slot in range(5):
        for step in STEPS:
            ours, separate, callback, ray_data = (
                saved_image(folder, variant, step, slot)
                for variant in ("proxyqueue", "separate", "callback", "ray_data")
            )
            assert psnr(ours, callback) > 40
            assert psnr(ours, ray_data) > 40
            assert (psnr(ours, separate) > 40) == (step == 4)
    for variant in ("separate", "callback", "ray_data"):
        assert len(list((folder / "round0" / variant).rglob("*.jpg"))) == 15  # equal prompts are generated again
    for variant in ("limit", "batch_of_one"):  # they save nothing but what is compared
        last = 4 if variant == "limit" else 1  # of the images of the last batch
        assert len(list((folder / "round0" / variant).rglob("*.*"))) == last * len(STEPS)


@pytest.mark.slow
def test_similarity_is_that_of_the_images(measured):
    """All that two variants both show of the round."""
    report, folder = measured
    shown = {variant: folder / "round0" / variant for variant in ("limit", "batch_of_one")}
    both = [file.relative_to(shown["batch_of_one"]) for file in shown["batch_of_one"].rglob("*.png")]
    each = sorted(psnr(*(np.array(Image.open(place / file)) for place in shown.values())) for file in both)
    found = report["likeness"]["batch_of_one"]
    assert found["pictures"] == len(each) == len(STEPS)
    assert found["least_psnr"] == (None if math.isinf(each[0]) else pytest.approx(each[0]))
    assert found["median_psnr"] == (None if math.isinf(each[1]) else pytest.approx(each[1]))


def test_shares_of_work_that_overlaps():
    """Ten seconds of two actors; the second one encodes for a second while it denoises."""
    actors = [
        [Timing("denoising", 100, 4, 3), Timing("decoding", 104, 2, 2)],
        [Timing("denoising", 101, 8, 6), Timing("encoding", 103, 1, 1), Timing("text encoding", 100, 1, 0)],
    ]
    assert timings.had_core(actors) == 12 / 16
    shares = timings.shares(actors, 100, 110)
    assert {name: pytest.approx(share * 20) for name, share in shares.items()} == {
        "text encoding": 1, "denoising": 12, "decoding": 2, "encoding": 1, "waiting": 20 - 6 - 9,
    }  # fmt: skip


def test_slots_are_dealt_in_batches_and_duplicates_are_as_real_ones():
    shares = pool.deal([(number, "", 0) for number in range(7)], 2, batch_size=2)
    assert [[number for number, _, _ in share] for share in shares] == [[0, 1, 4, 5], [2, 3, 6]]
    assert pool.arrangements(4, "cpu") == [pool.Arrangement(4, 1), pool.Arrangement(1, 4)]
    assert pool.arrangements(4, "cuda") == [pool.Arrangement(1, 4)]
    for slots, different in ((42, 40), (4_000, 3_800), (5, 5)):
        assert len(set(work.made_up(slots))) == different


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model": "full", "device": "cpu"}, "--model full: is for GPUs; on CPUs use mid"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"variants": ("limit", "limit")}, "--variants: name at least one of them, each once"),
        (
            {"variants": ("proxyqueue",), "levers": ("compiled",)},
            "--levers: name each once, and include limit",
        ),
        ({"work_dir": str(ROOT)}, f"--work_dir {ROOT}: is not empty"),
        ({"output": "nowhere/speed.json"}, "--output nowhere/speed.json: its folder does not exist"),
        ({"json_file": str(ROOT / "ray_app/sample.json"), "prompts": 99}, "--prompts 99: .*sample.json has only 30"),
    ],
)
def test_what_cannot_be_measured_is_refused(flags, words):
    def measure(options: Speed) -> None:
        options.check_flags()
        measure_speed(options)

    with pytest.raises(Refused, match=words):
        measure(Speed(**{"model": "tiny", **flags}))


def test_full_without_a_gpu_is_one_line(capsys):
    assert run_module("jobs.benchmarks.speed", Speed, measure_speed, ["--model", "full"]) == 2
    assert capsys.readouterr() == (
        "",
        "proxyqueue: --device cuda: this machine has no GPU; on CPUs use --model mid or tiny\n",
    )
