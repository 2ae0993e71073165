"""The plan: duplicates once, only what is missing, batches of equal captures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.recipe import Capture
from ray_app.annotations import circo
from ray_app.generation import plan

CAPTURES = [Capture(1), Capture(4), Capture(32)]


def slots_of(*prompt_lists):
    queries = [
        circo.Query(number, str(number), tuple(prompts), "combined") for number, prompts in enumerate(prompt_lists)
    ]
    return circo.slots(queries, 1, 0, "image", "jpg")


def nothing(slots):
    return np.zeros((slots.num_rows, len(CAPTURES)), bool)


def test_equal_prompts_are_denoised_once_and_serve_every_slot():
    slots = slots_of(["a", "b"], ["b", "c", "b"])
    made = plan.make_plan(slots, nothing(slots), CAPTURES)
    assert (made.slots, made.unique_denoises, made.duplicates_saved, made.images_to_generate) == (5, 3, 2, 15)
    assert made.denoises["prompt"].to_pylist() == ["a", "b", "c"]
    served = [[(slot["query_id"], slot["k"]) for slot in slots] for slots in made.denoises["slots"].to_pylist()]
    assert served == [[(0, 0)], [(0, 1), (1, 0), (1, 2)], [(1, 1)]]
    assert made.steps_to_run() == 96


def test_a_missing_step_costs_its_own_steps_only():
    slots = slots_of(["a", "b", "c"])
    there = ~nothing(slots)
    there[:, 1] = False
    there[2, 0] = False
    made = plan.make_plan(slots, there, CAPTURES)
    assert made.steps_to_run() == 12
    assert made.images_to_generate == 4
    assert dict(zip(made.denoises["prompt"].to_pylist(), made.denoises["captures"].to_pylist(), strict=True)) == {
        "a": [1],
        "b": [1],
        "c": [0, 1],
    }
    assert [made.has_missing_images(number) for number in range(3)] == [True, True, False]


def test_each_slot_keeps_its_own_missing_captures():
    slots = slots_of(["a"], ["a"])
    there = ~nothing(slots)
    there[0, 0] = there[1, 2] = False
    (row,) = plan.make_plan(slots, there, CAPTURES).denoises.to_pylist()
    assert row["captures"] == [0, 2]
    assert [slot["captures"] for slot in row["slots"]] == [[0], [2]]


def test_most_steps_first_and_equal_captures_together():
    slots = slots_of([f"prompt {number}" for number in range(6)])
    there = nothing(slots)
    there[[0, 2, 4], 2] = True
    made = plan.make_plan(slots, there, CAPTURES)
    assert made.denoises["prompt"].to_pylist() == [f"prompt {number}" for number in (1, 3, 5, 0, 2, 4)]
    assert [batch.num_rows for batch in made.batches(4)] == [4, 2]


def test_nothing_to_do():
    slots = slots_of(["a"])
    made = plan.make_plan(slots, ~nothing(slots), CAPTURES)
    assert (made.images_to_generate, made.denoises.num_rows, made.steps_to_run()) == (0, 0, 0)
    assert not list(made.batches(4))


@given(st.data())
def test_every_missing_image_is_planned_exactly_once(data):
    prompts = data.draw(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=6))
    slots = slots_of(*prompts)
    there = np.array(data.draw(st.lists(st.booleans(), min_size=3 * slots.num_rows, max_size=3 * slots.num_rows)))
    there = there.reshape(slots.num_rows, 3)
    made = plan.make_plan(slots, there, CAPTURES)
    planned = [
        (slot["query_id"], slot["k"], capture)
        for batch in made.batches(2)
        for row in batch.to_pylist()
        for slot in row["slots"]
        for capture in slot["captures"]
    ]
    every = slots.to_pylist()
    missing = [(every[row]["query_id"], every[row]["k"], capture) for row, capture in np.argwhere(~there).tolist()]
    assert sorted(planned) == sorted(missing)
    for row in made.denoises.to_pylist():
        assert row["captures"] == sorted({capture for slot in row["slots"] for capture in slot["captures"]})
    assert len(set(made.denoises["denoise_id"].to_pylist())) == made.denoises.num_rows


@pytest.mark.parametrize("share", [0, 1, 2, 3])
def test_the_real_annotations(circo_json, share):
    annotations = circo.load(circo_json, "multi_gpt-3.5_opt", 5)
    slots = circo.slots(annotations.queries(idx=share, gpu_num=4), 1, 0, "image", "jpg")
    made = plan.make_plan(slots, nothing(slots), CAPTURES)
    assert made.slots == 5 * (27 if share == 3 else 25)
    assert made.duplicates_saved == made.slots - made.unique_denoises > 0
    assert made.steps_to_run() == 32 * made.unique_denoises
