"""The benchmark that the package ships is in CIRCO's schema, complete, and what its script makes of the fonts."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.training import demo_scores, emoji_cir, stages
from ray_app import demo
from ray_app.evaluation import queries as scored_queries
from tests.jobs.test_training import training_data


@pytest.fixture(scope="module")
def shipped():
    return json.loads((emoji_cir.FOLDER / "queries.json").read_text())


@pytest.fixture(scope="module")
def images():
    return pq.read_table(demo.IMAGES)


def test_every_query_has_right_images_that_are_in_the_gallery_and_not_its_reference(shipped, images):
    names = set(images["name"].to_pylist())
    assert images.num_rows == len(names) == 1129
    assert len(shipped) >= 150
    assert [query["id"] for query in shipped] == [*range(len(shipped))]
    for query in shipped:
        right = query["gt_img_ids"]
        assert query["target_img_id"] == right[0]
        assert query["reference_img_id"] not in right
        assert len(set(right)) == len(right)
        assert {str(name) for name in (*right, query["reference_img_id"])} <= names
        assert len(query["multi_gpt-3.5_opt"]) == len(query["multi_caption_opt"]) == 5
        assert len(set(query["multi_gpt-3.5_opt"])) >= 3
        assert query["relative_caption"]
        assert query["shared_concept"]
    assert sum(len(query["gt_img_ids"]) > 1 for query in shipped) > 50
    aspects = {aspect for query in shipped for aspect in query["semantic_aspects"]}
    assert {"colour", "object", "direction", "expression", "person", "kind"} <= aspects


def test_evaluate_reads_it_as_ground_truth(shipped):
    read = scored_queries.load(str(emoji_cir.FOLDER / "queries.json"), "multi_gpt-3.5_opt", "multi_caption_opt")
    assert scored_queries.have_ground_truth(read)
    assert [len(query.relevant) for query in read] == [len(query["gt_img_ids"]) for query in shipped]


def test_names_that_the_encoder_never_learned_are_among_the_right_ones(shipped, images):
    held_out = np.array(images["name"].to_pylist())[stages.held_out(images.num_rows).numpy()]
    assert sum(str(query["target_img_id"]) in held_out for query in shipped) >= 15


def test_the_demo_takes_a_part_with_every_kind_of_change(shipped):
    part = json.loads(demo.QUERIES.read_text())
    assert len(part) == emoji_cir.IN_DEMO
    assert all(query in shipped for query in part)
    of_all, of_part = ({aspect for query in some for aspect in query["semantic_aspects"]} for some in (shipped, part))
    assert of_part == of_all


def test_the_files_are_small_and_say_their_licence(images):
    assert sum(file.stat().st_size for file in emoji_cir.FOLDER.iterdir()) <= 2e6
    assert "SIL OPEN FONT LICENSE Version 1.1" in (emoji_cir.FOLDER / "OFL.txt").read_text()
    assert b"SIL Open Font License 1.1" in images.schema.metadata[b"licence"]
    assert Image.open(io.BytesIO(images["image"][0].as_py())).size == (64, 64)


def test_the_script_makes_what_is_shipped(shipped, images):
    emojis = training_data()
    assert emoji_cir.queries(emojis) == shipped
    made = pq.read_table(io.BytesIO(emoji_cir.images(emojis[:20])))
    assert made["title"].to_pylist() == images["title"][:20].to_pylist()
    for one, encoded in zip(emojis[:20], images["image"], strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(encoded.as_py())).convert("RGB"), np.float32)
        assert np.abs(pixels - one.pixels).mean() < 6


def test_readmes_plot_is_of_the_recorded_scores_and_these_of_the_shipped_models():
    text = demo_scores.TABLE.read_text()
    remake = "python -m jobs.training.demo_scores"
    assert text.splitlines()[0] == f"# inputs {demo_scores.inputs()}", f"other models or queries: {remake}"
    with Image.open(demo_scores.PLOT) as plot, Image.open(io.BytesIO(demo_scores.plot_of(text))) as again:
        assert plot.info["Description"] == again.info["Description"], remake
        assert plot.size == again.size
