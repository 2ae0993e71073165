"""Flags: steps, shares of steps, numbers of workers, and invalid values."""

import pytest

from actors.recipe import Capture
from ray_app.arguments import parse
from ray_app.errors import Refused
from ray_app.flags import DEFAULT_STEPS
from ray_app.generation.options import Generate, parse_steps


@pytest.mark.parametrize(
    ("texts", "total", "steps"),
    [
        (("1", "4", "8", "16", "32"), 32, [1, 4, 8, 16, 32]),
        (("25%", "50%", "100%"), 32, [8, 16, 32]),
        (("1%", "12.5%"), 32, [1, 4]),
        (("50%",), 5, [3]),
        (("8", "2", "8", "25%"), 32, [2, 8]),
        (DEFAULT_STEPS, 8, [1, 4, 8]),
    ],
)
def test_steps(texts, total, steps):
    assert parse_steps(texts, total) == steps


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("0",), "--save_steps 0: outside 1..32 (--max_inference_steps)"),
        (("33",), "--save_steps 33: outside 1..32 (--max_inference_steps)"),
        (("-1",), "--save_steps -1: outside 1..32 (--max_inference_steps)"),
        (("four",), "--save_steps four: not a step (a whole number, or a share as 25%)"),
        (("1.5",), "--save_steps 1.5: not a step (a whole number, or a share as 25%)"),
        (("0%",), "--save_steps 0%: a share is above 0% and at most 100%"),
        (("101%",), "--save_steps 101%: a share is above 0% and at most 100%"),
        (("nan%",), "--save_steps nan%: a share is above 0% and at most 100%"),
        ((), "--save_steps: name at least one step"),
    ],
)
def test_bad_steps(texts, message):
    with pytest.raises(Refused) as raised:
        parse_steps(texts, 32)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_prompts": 0}, "--num_prompts 0: must be at least 1"),
        ({"img_per_prompt": -1}, "--img_per_prompt -1: must be at least 1"),
        ({"max_inference_steps": 0}, "--max_inference_steps 0: must be at least 1"),
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"gpu_num": 0}, "--gpu_num 0: must be at least 1"),
        ({"idx": 2, "gpu_num": 2}, "--idx 2: must be from 0 to 1"),
        ({"idx": -1}, "--idx -1: must be from 0 to 0"),
        ({"image_quality": 101}, "--image_quality 101: must be from 1 to 100"),
        ({"max_sequence_length": 513}, "--max_sequence_length 513: must be from 1 to 512"),
        ({"seed": 2**32}, "--seed 4294967296: must be from 0 to 4294967295"),
        ({"guidance_scale": float("nan")}, "--guidance_scale nan: must be 0 or more"),
        ({"guidance_scale": -1.0}, "--guidance_scale -1.0: must be 0 or more"),
        ({"gpus_per_actor": 0.0}, "--gpus_per_actor 0.0: must be a fraction of one GPU, or whole GPUs"),
        ({"gpus_per_actor": 1.5}, "--gpus_per_actor 1.5: must be a fraction of one GPU, or whole GPUs"),
        ({"num_workers": "3:2"}, "--num_workers 3:2: not a number of actors, N or MIN:MAX, from 1"),
        ({"num_workers": "many"}, "--num_workers many: not a number of actors, N or MIN:MAX, from 1"),
        ({"model_type": "flux", "negative_prompt": "x"}, "--negative_prompt: Flux takes none; leave it out"),
    ],
)
def test_invalid_values_are_refused(flags, message):
    with pytest.raises(Refused) as raised:
        Generate(**flags).check_flags()
    assert str(raised.value) == message


def test_captures_are_steps_of_each_snapshot():
    both = Generate(snapshot="both", save_steps=("1", "2"), max_inference_steps=2)
    assert both.captures() == [Capture(1, "xt"), Capture(2, "xt"), Capture(1, "x0"), Capture(2, "x0")]


def test_workers():
    assert Generate(num_workers="3").worker_bounds() == (3, 3)
    assert Generate(num_workers="1:4").worker_bounds() == (1, 4)
    assert Generate().worker_bounds() is None


def test_separate_runs_have_no_other_snapshot():
    """An N-step run ends with xt and x0 equal."""
    Generate(mode="separate").check_flags()
    with pytest.raises(Refused, match=r"--snapshot both: .* use xt with --mode separate"):
        Generate(mode="separate", snapshot="both").check_flags()


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "off"),
        (["--compile"], "on"),
        (["--compile", "--deterministic"], "on"),
        (["--compile", "auto"], "auto"),
        (["--compile=auto"], "auto"),
    ],
)
def test_compile_alone_is_on(arguments, value):
    assert parse("proxyqueue generate", Generate, arguments).compile == value
