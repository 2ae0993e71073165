"""evaluate: planted targets are found, controls find none, tables and pages say so, and bad input is one line."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_app.cli import main
from ray_app.evaluation import features, page, scores_table
from ray_app.output.open import open_output
from tests.support.planted import ENCODER, FIRST_ID, STEPS, WIDTH, plant, write_features, write_photos

FEW = ["--bootstrap", "200"]


def run(folder: Path, *flags: str, code: int = 0) -> list[dict]:
    known = ["--output_base_path", str(folder / "out"), "--json_file", str(folder / "val.json")]
    assert main(["evaluate", *known, *FEW, *flags]) == code
    return [] if code else pq.read_table(folder / "out/evaluation/evaluation.parquet").to_pylist()


def pick(rows: list[dict], **values) -> list[dict]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def value(rows: list[dict], metric: str = "mAP@10", compared_with: str | None = None, **values) -> float:
    (row,) = pick(rows, metric=metric, compared_with=compared_with, **values)
    return row["value"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A folder with `out`, scored, `val.json` and `photos`."""
    folder = tmp_path_factory.mktemp("planted")
    plant(folder, image_indices=2)
    write_photos(folder)
    run(folder, "--images", str(folder / "photos"), "--weights", "0", "0.5", "1")
    return folder


@pytest.fixture
def copy(planted, tmp_path) -> Path:
    shutil.copytree(planted, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def rows(planted) -> list[dict]:
    return pq.read_table(planted / "out/evaluation/evaluation.parquet").to_pylist()


def test_planted_targets_are_found_from_the_step_that_shows_them(rows):
    own = {"method": "proxy", "control": "none"}
    found = {step: value(rows, "Recall@5", step=step, **own) for step in STEPS}
    assert found[32] == 100
    assert found[1] < 50
    assert {row["n"] for row in pick(rows, metric="mAP@10")} == {12}
    assert value(rows, "cosine", step=32, method="proxy") == pytest.approx(100)
    assert value(rows, "cosine", step=1, method="proxy") < value(rows, "cosine", step=4, method="proxy") < 100


def test_controls_find_nothing_but_another_seed_does(rows):
    of_last = {"step": 32, "method": "proxy"}
    scores = {name: value(rows, control=name, **of_last) for name in ("none", "shuffled", "noise", "other_seed")}
    assert scores["none"] > 40
    assert scores["other_seed"] > 40
    assert max(scores["shuffled"], scores["noise"]) < 10
    difference = value(rows, compared_with="shuffled", control="none", **of_last)
    assert difference == pytest.approx(scores["none"] - scores["shuffled"])


def test_weights_reach_from_text_to_proxy(rows):
    own = {"step": 4, "control": "none"}
    text = value(rows, method="text")
    assert value(rows, method="text+proxy", weight=0, **own) == text
    assert value(rows, method="text+proxy", weight=1, **own) == value(rows, method="proxy", **own)
    assert value(rows, method="ipcir", weight=1, **own) == text
    assert value(rows, method="ipcir", weight=0, **{**own, "control": "left_out"}) < 100


def test_rows_have_intervals_around_their_values_and_an_adjusted_p(rows):
    assert all(row["low"] - 1e-9 <= row["value"] <= row["high"] + 1e-9 for row in rows)
    differences = pick(rows, compared_with="last step", metric="mAP@10", method="proxy")
    assert {row["step"] for row in differences} == {1, 4}
    assert all(0 < row["p_holm"] <= 1 for row in differences)
    assert min(row["p_holm"] for row in differences) == pytest.approx(2 * 2 / 201)  # no draw, two steps
    assert value(rows, compared_with="last step", step=1, method="proxy") < 0
    assert {row["p_holm"] for row in rows if row["compared_with"] != "last step"} == {None}


def test_semantic_aspects_are_scored_over_their_queries(rows):
    metric = "mAP@10 (cardinality)"
    (row,) = pick(rows, metric=metric, method="text")
    assert row["n"] == 6
    both = [value(rows, f"mAP@10 ({name})", method="text") for name in ("cardinality", "addition")]
    assert np.mean(both) == pytest.approx(value(rows, method="text"))


def test_the_same_inputs_give_the_same_file(copy):
    first = (copy / "out/evaluation/evaluation.parquet").read_bytes()
    run(copy, "--weights", "0", "0.5", "1")
    assert (copy / "out/evaluation/evaluation.parquet").read_bytes() == first


def test_what_is_printed_answers_the_question(copy, capsys):
    run(copy, "--methods", "proxy", "text+proxy")
    told = capsys.readouterr().out
    assert re.search(
        r"proxy: step 1 is within \d+\.\d mAP@10 of step 32 \(step 1 minus step 32: -\d+\.\d, 95 %: -\d+\.\d to"
        r" -\d+\.\d, n = 12; differs, p = 0\.02 after Holm over 2 steps\)",
        told,
    )
    assert re.search(r"text\+proxy: step 32 gains \+\d+\.\d mAP@10 over text alone .* own proxies are worth", told)
    assert "the gain is also had" not in told
    assert "only 12 queries: from fewer than 30" in told


def test_a_gain_of_the_shuffled_control_is_told(tmp_path, capsys):
    """All queries seek the same images: another query's proxies help as much as the own ones."""
    chance = np.random.default_rng(0)
    common = chance.standard_normal(WIDTH)
    common /= np.linalg.norm(common)
    output = plant(tmp_path, text_share=0.0, steps={1: 2.0, 4: 2.0}, proxies=lambda query, target: common)
    entries = json.loads((tmp_path / "val.json").read_text())
    for entry in entries:
        entry |= {"target_img_id": FIRST_ID + 150, "gt_img_ids": [FIRST_ID + 150]}
    (tmp_path / "val.json").write_text(json.dumps(entries))
    write_features(output, [{"sha256": "photo", "name": str(FIRST_ID + 150), "vector": common}], part="b")
    run(tmp_path, "--methods", "text+proxy")
    assert "the gain is also had by the shuffled control" in capsys.readouterr().out


def test_where_text_is_best_steps_are_still_compared_with_some_proxy(tmp_path, capsys):
    """At the weight of text alone no step could differ."""
    plant(tmp_path, text_share=9.0, steps={1: 0.0, 4: 0.0})
    run(tmp_path, "--weights", "0", "0.75", "1")
    told = capsys.readouterr().out
    assert "weights: text+proxy at 0.75, ipcir at " in told
    assert "text+proxy: step 4 gains" in told
    assert "no gain shown" in told


def test_photos_may_be_in_a_parquet_file(planted, tmp_path):
    photos = sorted((planted / "photos").iterdir())
    rows = {"name": [photo.stem for photo in photos], "image": [photo.read_bytes() for photo in photos]}
    pq.write_table(pa.table(rows), tmp_path / "photos.parquet")
    of_folder, of_file = (page.Photos(str(where)) for where in (planted / "photos", tmp_path / "photos.parquet"))
    assert of_file.thumbnail(str(FIRST_ID)) == of_folder.thumbnail(str(FIRST_ID)) != of_file.thumbnail("100001")
    assert of_file.thumbnail("none") is None


def test_the_page_is_one_file_that_loads_nothing(planted):
    text = (planted / "out/evaluation/index.html").read_text()
    sources = re.findall(r'src="([^"]{,30})', text)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "<script" not in text
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'sha256-", text)
    assert text.count('<figure class="right">') > 3
    assert text.count('class="none"') == 0


def test_names_on_the_page_are_escaped(copy):
    entries = json.loads((copy / "val.json").read_text())
    entries[0]["relative_caption"] = "<script>alert(1)</script>"
    (copy / "val.json").write_text(json.dumps(entries))
    run(copy, "--show_queries", "0")
    text = (copy / "out/evaluation/index.html").read_text()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text


def test_models_and_snapshots_are_groups_and_the_last_of_the_steps_named_is_compared_with(tmp_path):
    plant(tmp_path, snapshots=("xt", "x0"))
    rows = run(tmp_path, "--steps", "1", "4", "--methods", "proxy")
    groups = {(row["model"], row["snapshot"]) for row in rows}
    assert groups == {("sdxl", "xt"), ("sdxl", "x0")}
    assert {row["step"] for row in rows} == {None, 1, 4}
    assert {row["step"] for row in pick(rows, compared_with="last step")} == {1}
    assert {row["snapshot"] for row in run(tmp_path, "--snapshot", "x0", "--methods", "proxy")} == {"x0"}


def test_the_smallest_evaluation_has_no_shuffle_and_no_other_step(tmp_path, capsys):
    plant(tmp_path, queries=1, gallery=20, steps={4: 1.0})
    rows = run(tmp_path)
    assert {row["control"] for row in rows} == {"none", "left_out"}
    assert not pick(rows, compared_with="last step")
    assert pick(rows, metric="overlap@20")


def test_the_gallery_is_what_was_not_generated_or_what_is_listed(tmp_path):
    """Images that have been generated again leave vectors behind; they are known by their names."""
    output = plant(tmp_path, queries=2, gallery=30, truth=False)
    own = pq.read_table(output / "index")["sha256"][0].as_py()
    named = {"combined_7_0": "old", "999999": own}
    write_features(output, [{"name": n, "sha256": s, "vector": np.ones(WIDTH)} for n, s in named.items()], part="b")
    run(tmp_path, "--methods", "proxy")
    file = output / "evaluation/submissions/sdxl_xt_step4_proxy.json"
    everything = set(range(FIRST_ID, FIRST_ID + 30))
    assert [set(ids) for ids in json.loads(file.read_text()).values()] == [everything, everything]
    (tmp_path / "ids.txt").write_text(f"{FIRST_ID + 9}\n000{FIRST_ID}\n")
    run(tmp_path, "--methods", "proxy", "--gallery", str(tmp_path / "ids.txt"))
    assert json.loads(file.read_text())["0"] == [FIRST_ID, FIRST_ID + 9]


@pytest.fixture
def without_truth(tmp_path) -> Path:
    plant(tmp_path, truth=False)
    return tmp_path


def test_without_ground_truth_steps_are_compared_with_the_last(without_truth, capsys):
    rows = run(without_truth, "--weights", "0.5")
    own = {"method": "proxy", "control": "none"}
    assert value(rows, "overlap@50", step=32, **own) == 100
    assert value(rows, "overlap@50", step=1, **own) < value(rows, "overlap@50", step=4, **own) < 100
    assert not pick(rows, metric="mAP@10")
    assert re.search(r"proxy: step 4 has \d+\.\d % of step 32's top 50", capsys.readouterr().out)


def test_submissions_are_what_the_server_takes_and_its_scores_come_back(without_truth):
    run(without_truth, "--weights", "0.5")
    folder = without_truth / "out/evaluation/submissions"
    names = sorted(path.name for path in folder.iterdir())
    steps = [f"sdxl_xt_step{step}_" for step in (1, 32, 4)]
    assert names == sorted(
        [
            "sdxl_xt_text.json",
            *(step + end for step in steps for end in ("proxy.json", "text+proxy_w0.5.json", "ipcir_w0.5.json")),
        ]
    )
    submission = json.loads((folder / "sdxl_xt_step32_proxy.json").read_text())
    assert list(submission) == [str(query) for query in range(12)]
    assert all(len(set(ids)) == 50 and all(isinstance(name, int) for name in ids) for ids in submission.values())
    assert [ids[0] for ids in submission.values()] == [FIRST_ID + query for query in range(12)]
    results = without_truth / "results.csv"
    results.write_text("file,metric,value\nsdxl_xt_step32_proxy.json,mAP@10,31.25\n")
    rows = run(without_truth, "--weights", "0.5", "--results", str(results))
    (row,) = pick(rows, metric="mAP@10")
    assert (row["step"], row["method"], row["value"], row["low"], row["n"]) == (32, "proxy", 31.25, None, 12)
    assert list(row) == scores_table.SCHEMA.names


def test_queries_without_vectors_are_named_and_left_out_of_all_steps(copy, capsys):
    part = copy / f"out/features/encoder={ENCODER}/part-a.parquet"
    table = pq.read_table(part)
    index = pq.read_table(copy / "out/index").to_pylist()
    gone = [row["sha256"] for row in index if row["query_id"] == 3 and row["step"] == 4]
    kept = [row["sha256"] not in gone and row["text"] not in ("prompt 5 0", "prompt 5 1") for row in table.to_pylist()]
    pq.write_table(table.filter(np.array(kept)), part)
    rows = run(copy)
    assert {row["n"] for row in pick(rows, metric="mAP@10")} == {10}
    told = capsys.readouterr().err
    assert "sdxl xt: left out of all steps, for want of vectors of text or images: queries 3, 5" in told
    assert "4 slots don't count" in told


def test_other_commands_leave_both_folders_alone_query_sees_them_and_clean_all_removes_them(copy, capsys):
    out = str(copy / "out")
    kept = [path for name in ("features", "evaluation") for path in (copy / "out" / name).rglob("*") if path.is_file()]
    contents = {path: path.read_bytes() for path in kept}
    assert main(["verify", "--output_base_path", out]) == 0
    assert main(["compact", "--output_base_path", out]) == 0
    capsys.readouterr()
    sql = "SELECT method, count(*) AS n FROM evaluation GROUP BY ALL ORDER BY method"
    assert main(["query", "--output_base_path", out, "--format", "csv", sql]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "method",
        "ipcir",
        "proxy",
        "text",
        "text+proxy",
    ]
    sql = "SELECT count(*) FROM images JOIN features USING (sha256) WHERE features.status = 'ok'"
    assert main(["query", "--output_base_path", out, "--format", "csv", sql]) == 0
    assert capsys.readouterr().out.splitlines()[1] == str(12 * 2 * 2 * len(STEPS))
    assert main(["clean", "--output_base_path", out, "--model_type", "sdxl", "--yes"]) == 0
    assert {path: path.read_bytes() for path in kept} == contents
    assert main(["clean", "--output_base_path", out, "--all", "--yes"]) == 0
    assert not [path for path in kept if path.exists()]


def test_without_scores_query_has_no_such_view(planted, tmp_path, capsys):
    shutil.copytree(planted / "out/index", tmp_path / "index")
    assert main(["query", "--output_base_path", str(tmp_path), "SELECT * FROM evaluation"]) == 2
    assert "evaluation" in capsys.readouterr().err


def test_ids_are_compared_as_numbers_where_they_are_numbers():
    assert features.image_key("000000123456") == features.image_key(123456) == "123456"
    assert features.image_key("0") == features.image_key(0) == "0"
    assert features.image_key("photo_01") == "photo_01"


def test_the_last_of_several_vectors_of_a_name_counts(tmp_path):
    first, second = np.eye(WIDTH, dtype=np.float32)[:2]
    rows = [{"name": "007", "vector": first}, {"text": "a", "vector": first}]
    write_features(tmp_path, [*rows, {"name": "8", "status": "failed", "error_type": "OSError"}])
    write_features(tmp_path, [{"name": "7", "vector": 5 * second}], part="b")
    read = features.read(open_output(str(tmp_path)), None)
    assert read.unit_vectors([read.of_name["7"], read.of_text["a"]]).tolist() == [second.tolist(), first.tolist()]
    assert "8" not in read.of_name


def test_a_damaged_part_is_named_and_left_out(tmp_path, capsys):
    part = write_features(tmp_path, [{"name": "7", "vector": np.ones(WIDTH)}])
    write_features(tmp_path, [{"name": "8", "vector": np.ones(WIDTH)}], part="b").write_bytes(b"nothing")
    assert list(features.read(open_output(str(tmp_path)), None).of_name) == ["7"]
    assert f"{part.with_name('part-b.parquet')}: a damaged part of the features" in capsys.readouterr().err


@dataclasses.dataclass
class Bad:
    """A change to the planted output or its files, flags, and the end of the line that it gets."""

    change: object
    message: str
    flags: tuple[str, ...] = ()


def remove_features(folder: Path) -> None:
    shutil.rmtree(folder / "out/features")


def other_width(folder: Path) -> None:
    write_features(folder / "out", [{"text": "x", "vector": np.ones(8)}], part="b", width=8)


def nan(folder: Path) -> None:
    write_features(folder / "out", [{"text": "x", "vector": np.full(WIDTH, np.nan)}], part="b")


def zeros(folder: Path) -> None:
    write_features(folder / "out", [{"name": "x", "vector": np.zeros(WIDTH)}], part="b")


def other_revision(folder: Path) -> None:
    write_features(folder / "out", [{"text": "x", "vector": np.ones(WIDTH), "revision": "r2"}], part="b")


def other_preprocessing(folder: Path) -> None:
    row = {"sha256": "x", "name": "x", "vector": np.ones(WIDTH), "preprocessing": "model"}
    write_features(folder / "out", [row], part="b")


def other_encoder(folder: Path) -> None:
    write_features(folder / "out", [{"text": "x", "vector": np.ones(WIDTH)}], encoder="another")


def short_gallery(folder: Path) -> None:
    (folder / "ids.txt").write_text("".join(f"{FIRST_ID + number}\n" for number in range(5)))


def wrong_gallery(folder: Path) -> None:
    (folder / "ids.txt").write_text(f"{FIRST_ID}\nnothing\n")


def some_truth(folder: Path) -> None:
    entries = json.loads((folder / "val.json").read_text())
    del entries[4]["gt_img_ids"]
    (folder / "val.json").write_text(json.dumps(entries))


def other_queries(folder: Path) -> None:
    entries = json.loads((folder / "val.json").read_text())
    (folder / "val.json").write_text(json.dumps([{**entries[0], "id": 99}]))


def no_captions(folder: Path) -> None:
    text = (folder / "val.json").read_text()
    (folder / "val.json").write_text(text.replace("multi_caption_opt", "captions"))


def unchanged(folder: Path) -> None:
    pass


GALLERY = ("--gallery", "HERE/ids.txt")
BAD = {
    "no features": Bad(remove_features, "HERE/out/features: no features; `proxyqueue features` writes them"),
    "two widths": Bad(other_width, "part-b.parquet: vectors of 8 numbers, and 32 in other parts: of another encoder"),
    "nan": Bad(nan, "encoder=planted: the vector of 'x' has NaN or infinite values; remove its part and encode again"),
    "zeros": Bad(zeros, "encoder=planted: the vector of 'x' is all zeros; remove its part and encode again"),
    "two revisions": Bad(other_revision, "encoder=planted: revision r2 of planted, other vectors are of r1"),
    "two preprocessings": Bad(
        other_preprocessing, "encoder=planted: preprocessing model of planted, other vectors are of none"
    ),
    "two encoders": Bad(other_encoder, "HERE/out/features: features of another, planted; choose one with --encoder"),
    "unknown encoder": Bad(unchanged, "--encoder clip: no features of it; HERE/out/fea", ("--encoder", "clip")),
    "short gallery": Bad(
        short_gallery,
        "val.json: query 0: its right image 100024 is not in the gallery of 5 images (19 such ids)",
        GALLERY,
    ),
    "gallery without vectors": Bad(wrong_gallery, "ids.txt: 1 of 2 images have no vector of planted, 'not", GALLERY),
    "no gallery file": Bad(unchanged, "--gallery HERE/ids.txt: can't be read: No such file or directory", GALLERY),
    "some ground truth": Bad(some_truth, "val.json: query 4: no 'gt_img_ids', which other queries have"),
    "other queries": Bad(other_queries, "val.json: no query has vectors of its text and of sdxl xt images at each of"),
    "no captions": Bad(no_captions, "--methods ipcir: needs vectors of captions", ("--methods", "ipcir")),
    "no such model": Bad(unchanged, "HERE/out/index: no image of this selection in it", ("--model_type", "flux")),
    "weight above 1": Bad(unchanged, "--weights 2: a number from 0 to 1, or FIRST:LAST:STEP such", ("--weights", "2")),
    "weights without end": Bad(unchanged, "--weights 0:1:0: a number from 0 to 1", ("--weights", "0:1:0")),
    "unknown query": Bad(unchanged, "--show_queries 77: no query with this id in the", ("--show_queries", "77")),
    "no photos": Bad(unchanged, "--images HERE/nowhere: can't be listed: No such file", ("--images", "HERE/nowhere")),
    "scores of known truth": Bad(unchanged, "--results: goes with annotations without ground", ("--results", "x.csv")),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_bad_input_is_one_line(copy, capsys, bad):
    bad.change(copy)
    shutil.rmtree(copy / "out/evaluation")
    run(copy, *(flag.replace("HERE", str(copy)) for flag in bad.flags), code=2)
    (line,) = capsys.readouterr().err.replace(str(copy), "HERE").splitlines()
    assert bad.message in line
    assert not (copy / "out/evaluation").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column 'file'; it needs file,metric,value"),
        ("file,metric,value\nx.json,mAP@10,3\n", "line 2: 'x.json' is no submission of this evaluation"),
        ("file,metric,value\nsdxl_xt_text.json,mAP@10,high\n", "line 2: value 'high' is not a number"),
    ],
)
def test_scores_that_do_not_fit_are_refused(without_truth, capsys, text, message):
    (without_truth / "results.csv").write_text(text)
    run(without_truth, "--weights", "0.5", "--results", str(without_truth / "results.csv"), code=2)
    assert capsys.readouterr().err.strip().endswith(message)
