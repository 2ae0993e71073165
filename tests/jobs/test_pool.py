"""The pool of processes: each generates its share, and those without one wait for them."""

import pytest

from jobs.benchmarks.pool import started_pool

PROMPTS = ["a dog", "a cat on a mat"]


@pytest.mark.slow
def test_each_process_generates_its_share_and_the_rest_is_idle(recipe_for, tmp_path):
    recipe = recipe_for(model_path="tiny", max_inference_steps=2, batch_size=1)
    shares = [[(number, prompt, 0)] for number, prompt in enumerate(PROMPTS)]
    with started_pool(recipe, [1, 2], 2) as pool:
        assert pool.generate("separate", shares, 1, tmp_path / "two") > 0
        assert pool.generate("separate", shares[:1], 2, tmp_path / "one") > 0
    assert len(list((tmp_path / "two").rglob("*.jpg"))) == 4
    assert len(list((tmp_path / "one").rglob("*.jpg"))) == 2
