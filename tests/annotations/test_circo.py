"""The annotations: every check, shares, shared references, slots."""

import json

import pytest

from ray_app.annotations import circo
from ray_app.errors import Refused

FIELD = "multi_gpt-3.5_opt"


def entry(query_id=0, reference=7, prompts=("a", "b"), **more):
    return {"id": query_id, "reference_img_id": reference, FIELD: list(prompts), **more}


@pytest.fixture
def load(tmp_path):
    def load(content, num_prompts=2, strict=False):
        path = tmp_path / "test.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        try:
            return circo.load(str(path), FIELD, num_prompts, strict)
        except Refused as refused:
            raise Refused(str(refused).replace(str(path), "FILE")) from None

    return load


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"id": 1, FIELD: ["a"]}, "query 1: no 'reference_img_id'"),
        (entry(1, None), "query 1: no 'reference_img_id'"),
        (entry(1, 1.5), "query 1: 'reference_img_id' is a number, not a whole number or string"),
        (entry(1, True), "query 1: 'reference_img_id' is true or false, not a whole number or string"),
        ({"reference_img_id": 7, FIELD: ["a"]}, "entry 1: no 'id'"),
        (entry(0), "entry 1: duplicate 'id' 0"),
        (entry("one"), "entry 1: 'id' 'one' is not a whole number from 0 to 2^63-1"),
        (entry(-1), "entry 1: 'id' '-1' is not a whole number from 0 to 2^63-1"),
        (entry(2**63), "entry 1: 'id' '9223372036854775808' is not a whole number from 0 to 2^63-1"),
        (entry(True), "entry 1: 'id' is true or false, not a whole number from 0 to 2^63-1"),
        (entry([1]), "entry 1: 'id' is a list, not a whole number from 0 to 2^63-1"),
        ({"id": 1, "reference_img_id": 7}, f"query 1: no '{FIELD}'; name the prompts' field with --prompt_field"),
        (entry(1, prompts=[]), f"query 1: '{FIELD}' is empty"),
        (entry(1, prompts=["a", 5]), f"query 1: '{FIELD}'[1] is a number, not a string"),
        (entry(1, prompts=[None]), f"query 1: '{FIELD}'[0] is null, not a string"),
        ({**entry(1), FIELD: "a"}, f"query 1: '{FIELD}' is a string, not a list of prompts"),
        (entry(1, prompts=["\ud800"]), f"query 1: '{FIELD}'[0] is not valid Unicode (half a surrogate pair)"),
    ],
)
def test_queries_that_are_reported_and_skipped(load, bad, problem):
    annotations = load([entry(0), bad, entry(9)])
    assert [line.split(": ", 1)[1] for line in annotations.skipped] == [f"{problem}; skipped"]
    assert [query.query_id for query in annotations.queries()] == [0, 9]
    with pytest.raises(Refused) as raised:
        load([entry(0), bad], strict=True)
    assert str(raised.value) == f"FILE: {problem} (--strict)"


def test_no_usable_query_is_refused(load):
    with pytest.raises(Refused, match=r"FILE: no usable query: .* is empty; skipped"):
        load([entry(0, prompts=[])])


def test_prompts_beyond_those_drawn_do_not_matter(load):
    assert load([entry(prompts=["a", "b", None])]).queries()[0].prompts == ("a", "b")


def test_warnings_name_few_and_blank_prompts_and_underscores(load):
    annotations = load([entry(0, "a_b", prompts=[" "])])
    assert [line.rsplit(": ", 1)[1] for line in annotations.warnings] == [
        f"'{FIELD}' has 1 of 2 prompts; those are used",
        f"'{FIELD}'[0] is blank; used as it is",
        "'reference_img_id' 'a_b' has an underscore; retrieval scripts, which split file names at underscores, read it"
        " wrong",
    ]


def test_ids_as_text_and_a_byte_order_mark_are_read(load):
    content = b"\xef\xbb\xbf" + json.dumps([entry("12", "000019")]).encode()
    (query,) = load(content).queries()
    assert (query.query_id, query.reference_img_id) == (12, "000019")


def test_shares_are_contiguous_and_meet(load):
    annotations = load([entry(query_id) for query_id in range(11)] + [entry(0)])
    shares = [[query.query_id for query in annotations.queries(idx=idx, gpu_num=5)] for idx in range(5)]
    assert shares == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9, 10]]
    assert [query.query_id for query in annotations.queries(query_ids=[5, 3, 8], limit=2)] == [3, 5]
    with pytest.raises(Refused, match="--query_ids 99: no usable query with this id"):
        annotations.queries(query_ids=[5, 99])


def test_a_shared_reference_gets_a_folder_of_its_own_in_every_selection(load):
    annotations = load([entry(66, 297636), entry(5, 1), entry(680, 297636)])
    assert [query.folder for query in annotations.queries()] == ["combined", "combined", "combined_query680"]
    assert [query.folder for query in annotations.queries(query_ids=[680])] == ["combined_query680"]


def test_slots_are_numbered_as_the_scripts_number_files(load):
    queries = load([entry(3, 281438), entry(4, 281438)]).queries()
    slots = circo.slots(queries, 2, seed=5, seed_mode="image", image_format="jpg").to_pylist()
    assert [(slot["prompt"], slot["image_index"], slot["k"], slot["seed"]) for slot in slots[:4]] == [
        ("a", 0, 0, 5),
        ("a", 1, 1, 6),
        ("b", 0, 2, 5),
        ("b", 1, 3, 6),
    ]
    assert slots[3]["file"] == "combined/combined_281438_3.jpg"
    assert slots[4]["file"] == "combined_query4/combined_281438_0.jpg"
    assert len({slot["denoise_id"] for slot in slots}) == 4
    with pytest.raises(Refused, match="--seed 4294967295: with 2 images per prompt seeds would pass"):
        circo.slots(queries, 2, seed=2**32 - 1, seed_mode="image", image_format="jpg")


def test_the_real_annotations(circo_json):
    annotations = circo.load(circo_json, FIELD, 5)
    slots = circo.slots(annotations.queries(), 1, 0, "image", "jpg")
    assert (annotations.skipped, annotations.warnings) == ([], [])
    assert slots.num_rows == 510
    assert len(set(slots["denoise_id"].to_pylist())) == 488
    assert len(set(slots["reference_img_id"].to_pylist())) == 101
    assert len(set(slots["file"].to_pylist())) == 510
    shared = [slot["file"] for slot in slots.to_pylist() if slot["query_id"] in (251, 631) and slot["k"] == 0]
    assert shared == ["combined/combined_304135_0.jpg", "combined_query631/combined_304135_0.jpg"]
