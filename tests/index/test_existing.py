"""What exists: rows and files together decide; another image under the same name is refused."""

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from actors.recipe import Capture
from ray_app.annotations import circo
from ray_app.errors import Refused
from ray_app.generation import recipes
from ray_app.index import existing
from ray_app.index.writer import IndexWriter
from ray_app.output import layout
from ray_app.output.open import open_output

CAPTURES = [Capture(1), Capture(2, "x0")]


def slots_of(img_per_prompt=1, seed=0, prompts=("a", "b"), queries=((1, "r1"), (2, "r1"), (3, "r3"))):
    seen: set[str] = set()
    made = []
    for query_id, reference in queries:
        made.append(circo.Query(query_id, reference, prompts, layout.query_folder(query_id, reference not in seen)))
        seen.add(reference)
    return circo.slots(made, img_per_prompt, seed, "image", "jpg")


@pytest.fixture
def recipe(recipe_for):
    return recipe_for(model_path="tiny")


@pytest.fixture
def output(tmp_path, recipe):
    return Output(tmp_path, recipe)


class Output:
    """An output with real files and real parts, written image by image."""

    def __init__(self, root, recipe):
        self.files = open_output(str(root)).writer("run-1")
        self.index = IndexWriter(self.files, recipe)

    def add(self, slots, captures=CAPTURES, status="ok"):
        for slot in slots.to_pylist():
            for capture in captures:
                path = f"{layout.step_folder('sdxl', capture.snapshot, capture.step)}/{slot['file']}"
                data = path.encode()
                if status == "ok":
                    self.files.write(path, data)
                row = {name: slot[name] for name in slot if name != "file"}
                row |= {"step": capture.step, "snapshot": capture.snapshot, "path": path, "status": status}
                row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                self.index.append(pa.Table.from_pylist([row]))
        self.index.commit()

    def find(self, slots, img_per_prompt=1):
        return existing.find_existing(self.files.output, "sdxl", slots, CAPTURES, img_per_prompt).ok


def test_an_empty_output_has_nothing(output):
    assert not output.find(slots_of()).any()


def test_an_empty_share_of_the_queries_requests_nothing(output):
    output.add(slots_of())
    assert output.find(slots_of(queries=())).shape == (0, 2)


def test_rows_with_their_files_are_there_in_any_selection(output):
    output.add(slots_of())
    assert output.find(slots_of()).all()
    assert output.find(slots_of().slice(3, 2)).all()
    more = output.find(slots_of(prompts=("a", "b", "c")))
    assert more.all(1).tolist() == [True, True, False] * 3


def test_files_without_rows_rows_without_files_and_other_sizes_are_missing(output):
    slots = slots_of()
    output.add(slots.slice(1))
    (output.files.output.root / "proxy_images_sdxl_step1/combined/combined_r1_1.jpg").unlink()
    (output.files.output.root / "proxy_images_sdxl_step1/combined_query2/combined_r1_0.jpg").write_bytes(b"cut")
    output.files.write("proxy_images_sdxl_step1/combined/combined_r1_0.jpg", b"no row")
    expected = np.ones((6, 2), bool)
    expected[0] = expected[1, 0] = expected[2, 0] = False
    assert (output.find(slots) == expected).all()


def test_the_newest_row_of_a_key_counts(output):
    slots = slots_of()
    output.add(slots, status="failed")
    assert not output.find(slots).any()
    output.add(slots)
    assert output.find(slots).all()
    output.add(slots.slice(0, 1), status="failed")
    assert output.find(slots).all(1).tolist() == [False] + [True] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "query 1, prompt 0: seed: this output has 0, this run requests 4 (other --seed or --seed_mode)"),
        (
            {"prompts": ("a", "z")},
            "query 1, prompt 1: prompt: this output has 'b', this run requests 'z' (other annotations or --prompt",
        ),
        ({"img_per_prompt": 2}, "--img_per_prompt: this output has 1, this run requests 2: file numbers would collide"),
        ({"queries": [(3, "r9")]}, "query 3, prompt 0: reference_img_id: this output has 'r3', this run requests 'r9'"),
        (
            {"queries": [(2, "r1")]},
            "reference r1 belongs to query 1 in this output, but to query 2 in these annotations",
        ),
        (
            {"queries": [(8, "r1")]},
            "reference r1 belongs to query 1 in this output, but to query 8 in these annotations",
        ),
    ],
)
def test_another_image_under_the_same_name_is_refused(output, changes, message):
    output.add(slots_of())
    with pytest.raises(Refused) as raised:
        output.find(slots_of(**changes), changes.get("img_per_prompt", 1))
    assert message in str(raised.value)
    assert str(raised.value).endswith("take another --output_base_path")


def test_another_image_may_replace_one_whose_file_is_gone(output):
    output.add(slots_of())
    for path in output.files.output.root.rglob("combined*/*.jpg"):
        path.unlink()
    assert not output.find(slots_of(seed=4)).any()


def test_another_recipe_is_refused_with_each_field_that_differs(output, recipe):
    output.add(slots_of())
    assert recipes.check_recipe(output.files.output, recipe) == []
    other = dataclasses.replace(recipe, guidance_scale=5.0, num_inference_steps=16)
    with pytest.raises(Refused) as raised:
        recipes.check_recipe(output.files.output, other)
    assert (
        "--max_inference_steps: this output has 32, this run requests 16;"
        " --guidance_scale: this output has 0.0, this run requests 5.0"
    ) in str(raised.value)


def test_a_recipe_that_changes_low_bits_is_a_warning(output, recipe):
    output.add(slots_of())
    (warning,) = recipes.check_recipe(output.files.output, dataclasses.replace(recipe, batch_size=8))
    assert "--batch_size: this output has 4, this run requests 8" in warning


def test_a_recipe_of_failures_alone_binds_nobody(output, recipe):
    output.add(slots_of(), status="failed")
    assert recipes.check_recipe(output.files.output, dataclasses.replace(recipe, height=128)) == []
