"""What `--batch_size auto` and `--compile auto` come to: by free memory, a measured peak, the plan, or the output."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actors import peaks
from actors.recipe import Recipe
from ray_app.annotations import circo
from ray_app.cluster.gpu_probe import Gpu
from ray_app.errors import Refused
from ray_app.generation import automatic, plan
from ray_app.generation.options import Generate
from ray_app.generation.plan import Plan
from ray_app.output.open import open_output
from tests.conftest import ROOT, SAMPLE

GB = 10**9


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def on_gpu(recipe_for: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def resolve(**flags) -> Recipe:
        return recipe_for(**{"model_path": "full", "device": "cuda", "height": 512, "width": 512, **flags})

    return resolve


def gpus(*free: float | None) -> list[Gpu]:
    return [Gpu("w1", number, free=None if each is None else int(each * GB)) for number, each in enumerate(free)]


def options(**flags) -> Generate:
    return Generate(**{"model_path": "full", "batch_size": "auto", **flags})


def plan_of(steps: int, denoises: int) -> Plan:
    """A plan of several denoises with the same number of steps."""
    queries = circo.load(str(SAMPLE), "multi_gpt-3.5_opt", 1).queries()
    slots = circo.slots(queries, denoises, 0, "image", "jpg").slice(0, denoises)
    captures = options(save_steps=(str(steps),), max_inference_steps=steps).captures()
    return plan.make_plan(slots, np.zeros((denoises, 1), bool), captures)


def test_the_gpu_with_the_least_free_memory_decides(on_gpu):
    recipe = on_gpu()
    sizes = {free: automatic.choose_batch_size(options(), recipe, gpus(80, free)) for free in (11, 13, 17, 80)}
    assert sizes == {11: 1, 13: 4, 17: 32, 80: 32}  # from 8 on as many are decoded at a time
    for free, size in sizes.items():
        assert automatic.needed(recipe, size) <= free * GB * automatic.USED_SHARE
    assert automatic.choose_batch_size(options(gpus_per_actor=0.5), recipe, gpus(26)) == 4
    larger = on_gpu(height=1024, width=1024)
    assert automatic.choose_batch_size(options(), larger, gpus(80)) == 8  # four times the default of 2


def test_a_gpu_that_has_too_little_for_one_image_gets_batches_of_one(on_gpu, capsys):
    assert automatic.choose_batch_size(options(), on_gpu(), gpus(4)) == 1
    assert capsys.readouterr().err == (
        "proxyqueue: --batch_size auto: about 9 GB are needed for one image, and the smallest GPU has 4 GB for it\n"
    )


def test_gpus_that_tell_nothing_are_refused(on_gpu):
    broken = Gpu("w1", 1, error="no kernel image", free=80 * GB)
    with pytest.raises(Refused, match="--batch_size auto: no GPU has told how much memory it has free; give a number"):
        automatic.choose_batch_size(options(), on_gpu(), [*gpus(None), broken])


def test_a_measured_peak_corrects_the_estimate(on_gpu, cache):
    recipe = on_gpu(batch_size=8)
    estimated = automatic.needed(recipe, 8)
    peaks.keep(recipe, int(estimated - automatic.CONTEXT))
    assert automatic.needed(recipe, 8) == pytest.approx(estimated)
    peaks.keep(recipe, int(estimated + 4 * GB - automatic.CONTEXT))
    assert automatic.needed(recipe, 8) == pytest.approx(estimated + 4 * GB)
    assert automatic.needed(recipe, 4) < automatic.needed(recipe, 8)
    assert automatic.needed(on_gpu(batch_size=8, guidance_scale=5.0), 8) < estimated + 3 * GB  # of another model
    for file in cache.rglob("*.json"):
        file.write_text("{")
    assert automatic.needed(recipe, 8) == estimated


def test_compiling_pays_where_the_plan_of_each_actor_is_long(on_gpu):
    recipe = on_gpu(model_type="flux", height=1024, width=1024)
    assert not automatic.pays_to_compile(recipe, plan_of(32, 7), 1)  # 224 steps, and 240 are needed
    assert automatic.pays_to_compile(recipe, plan_of(32, 8), 1)
    assert not automatic.pays_to_compile(recipe, plan_of(32, 8), 2)
    assert not automatic.pays_to_compile(dataclasses.replace(recipe, height=512), plan_of(32, 8), 1)


def test_an_output_keeps_what_it_has(on_gpu, tmp_path):
    """The images of this one were generated in batches of 4."""
    asked, recipe = options(compile="auto"), on_gpu(batch_size=32)
    of_output = automatic.as_recorded(asked, recipe, open_output(str(ROOT / "tests/data/output_0.1.0")))
    assert of_output == dataclasses.replace(recipe, batch_size=4)
    assert automatic.describe(asked, of_output) == "\n--batch_size     4 (auto)\n--compile        off (auto)"
    assert automatic.as_recorded(asked, recipe, open_output(str(tmp_path))) is None


def test_nothing_is_chosen_on_cpus_but_that_compiling_is_off(recipe_for):
    recipe = recipe_for(model_path="tiny")
    asked = Generate(model_path="tiny", compile="auto")
    assert automatic.choose(asked, recipe, plan_of(32, 8), lambda: pytest.fail("no GPU is needed")) == recipe
    with pytest.raises(Refused, match="--batch_size auto: is for GPUs; on CPUs give a number"):
        Generate(model_path="tiny", batch_size="auto").check_flags()
