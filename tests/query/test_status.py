"""status: progress of what was requested, by runs or annotations; the pace of a run in another process."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from ray_app.annotations import circo
from ray_app.cli import main
from ray_app.generation.options import Generate
from ray_app.generation.recipes import resolve
from ray_app.index import requested as asked
from ray_app.index import runs
from ray_app.index.rows import read_rows
from ray_app.index.writer import IndexWriter
from ray_app.output.open import open_output
from ray_app.query import status
from tests.conftest import SAMPLE, start_cli
from tests.support.outputs import RECIPE, age, give_process, write_images

FLUX = dataclasses.replace(RECIPE, model_type="flux")


def looked(output, capsys, *arguments):
    capsys.readouterr()
    assert main(["status", "--output_base_path", str(output), "--format", "json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def images(report):
    """(snapshot, step): asked, done, failed, missing."""
    return {
        (line["snapshot"], line["step"]): tuple(line[name] for name in ("asked", "done", "failed", "missing"))
        for line in report["images"]
    }


def record(output, run_id, queries, captures, **facts):
    """A run's record that requests the first prompt of these queries."""
    files = open_output(str(output)).writer(run_id)
    wanted = {"queries": [[query, query, 1, 1] for query in queries], "captures": captures}
    runs.Record(files, model_type="sdxl", asked=wanted, **facts).beat()
    return files


def test_a_run_that_is_over_has_all_that_was_requested(output, capsys):
    report = looked(output, capsys)
    assert images(report) == {("xt", 1): (12, 12, 0, 0), ("xt", 4): (12, 12, 0, 0)}
    size = sum(path.stat().st_size for path in (output / "proxy_images_sdxl_step4").rglob("*.jpg"))
    assert [line["bytes"] for line in report["images"]][1] == size
    (run,) = report["runs"]
    assert (run["state"], run["model"], run["images_written"]) == ("complete", "sdxl", 24)
    assert report["going_on"] == []


def test_what_was_deleted_by_hand_is_missing_and_generate_agrees(output, capsys):
    shutil.rmtree(output / "proxy_images_sdxl_step4" / "combined_query4")
    (output / "proxy_images_sdxl_step1/combined/combined_100102_0.jpg").write_bytes(b"short")
    assert images(looked(output, capsys)) == {("xt", 1): (12, 11, 0, 1), ("xt", 4): (12, 10, 0, 2)}
    assert images(looked(output, capsys, "--index_only"))["xt", 4] == (12, 12, 0, 0)
    flags = f"--json_file {SAMPLE} --model_path tiny --max_inference_steps 4 --save_steps 1 4 --num_prompts 2"
    assert main(["generate", *flags.split(), "--output_base_path", str(output), "--dry_run"]) == 0
    assert "21 existing, 3 to generate" in capsys.readouterr().out


def test_annotations_can_request_more_than_the_runs_did(output, capsys):
    flags = ("--json_file", str(SAMPLE), "--num_prompts")
    assert images(looked(output, capsys, *flags, "3"))["xt", 1] == (18, 12, 0, 6)
    assert images(looked(output, capsys, *flags, "1"))["xt", 1] == (6, 6, 0, 0)
    more = looked(output, capsys, *flags, "2", "--steps", "4", "8", "--snapshot", "x0")
    assert images(more) == {("x0", 4): (12, 0, 0, 12), ("x0", 8): (12, 0, 0, 12)}


def test_shares_of_the_queries_count_together_and_failures_are_said(tmp_path, capsys):
    write_images(tmp_path, "run-1", range(10))
    write_images(tmp_path, "run-2", [3], status="failed")
    record(tmp_path, "run-1", range(6), [["xt", 1], ["xt", 4]])
    record(tmp_path, "run-2", range(4, 12), [["xt", 4], ["x0", 4]])
    assert images(looked(tmp_path, capsys)) == {
        ("xt", 1): (12, 9, 1, 2), ("xt", 4): (12, 9, 1, 2), ("x0", 4): (12, 0, 0, 12)
    }  # fmt: skip


def test_records_without_the_field_request_nothing(tmp_path, capsys):
    write_images(tmp_path, "run-1", range(3))
    write_images(tmp_path, "run-2", range(2), recipe=FLUX)
    (tmp_path / "runs").mkdir()
    for number, wanted in enumerate([None, 5, {"queries": "x", "captures": []}, {"queries": [[1]], "captures": []}]):
        text = json.dumps({"run_id": f"r{number}", "state": "running", "model_type": "sdxl", "asked": wanted})
        (tmp_path / "runs" / f"r{number}.json").write_text(text)
        age(tmp_path / "runs" / f"r{number}.json")
    report = looked(tmp_path, capsys)
    assert [(line["model"], line["step"], line["asked"], line["done"]) for line in report["images"]] == [
        ("sdxl", 1, None, 3), ("sdxl", 4, None, 3), ("flux", 1, None, 2), ("flux", 4, None, 2)
    ]  # fmt: skip
    assert {run["state"] for run in report["runs"]} == {"died"}
    assert main(["status", "--output_base_path", str(tmp_path), "--model_type", "flux"]) == 0
    out = capsys.readouterr().out
    assert "--json_file" in out
    assert "\nsdxl" not in out


@pytest.fixture
def two_shares(tmp_path: Path) -> float:
    """Two runs of live processes have ten queries each to generate at two steps, and have 16 images, two failures.

    Two other queries failed before. When the first of their rows came, in seconds since 1970.
    """
    write_images(tmp_path, "run-0", [18, 19], status="failed")
    for run_id, queries in (("run-1", range(10)), ("run-2", range(10, 20))):
        path = Path(record(tmp_path, run_id, queries, [["xt", 1], ["xt", 4]]).output.path(f"runs/{run_id}.json"))
        give_process(path, os.getppid())
    write_images(tmp_path, "run-1", range(8), rows_per_part=8)
    write_images(tmp_path, "run-2", [12], status="failed")
    rows = read_rows(open_output(str(tmp_path)), "sdxl", ["run_id"]).to_pylist()
    return min(row["created_at"] for row in rows if row["run_id"] == "run-1").timestamp()


def test_runs_of_other_processes_have_a_pace_and_time_left(two_shares, tmp_path, capsys, monkeypatch):
    """After the first eight images, ten rows came in ten seconds; what failed in these runs is not tried again."""
    monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: two_shares + 10))
    report = looked(tmp_path, capsys)
    assert report["going_on"] == [
        {
            "model": "sdxl",
            "run_ids": ["run-1", "run-2"],
            "images_per_second": 1.0,
            "images_left": 2 * 20 - 16 - 2,
            "seconds_left": 22,
        }
    ]
    assert [run["state"] for run in report["runs"]] == ["running", "running"]
    assert main(["status", "--output_base_path", str(tmp_path)]) == 0
    assert "sdxl: active, 1.0 images/s, 22 images to go, 0:22 left\n" in capsys.readouterr().out


def test_the_pace_is_that_of_the_last_five_minutes(two_shares, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: two_shares + 400))
    (pace,) = looked(tmp_path, capsys)["going_on"]
    assert (pace["images_per_second"], pace["images_left"], pace["seconds_left"]) == (0.0, 22, None)


def test_watching_shows_it_again_until_ctrl_c(output):
    flags = ["--output_base_path", str(output), "--watch", "--seconds", "0.2", "--format", "json"]
    process = start_cli("status", *flags)
    assert process.stdout
    first = json.loads(process.stdout.readline())
    shutil.rmtree(output / "proxy_images_sdxl_step1")
    deadline = time.monotonic() + 60
    while images(json.loads(process.stdout.readline()))["xt", 1] != (12, 0, 0, 12):
        assert time.monotonic() < deadline, "status --watch has not shown that a step's folder is gone"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert images(first)["xt", 1] == (12, 12, 0, 0)
    assert (process.returncode, err) == (130, "")


def test_a_record_is_short_and_says_what_the_slots_are():
    queries = [circo.Query(n, f"r{n}", ("a",) * (2 if n == 5 else 3), "combined") for n in (*range(9), 20)]
    slots = circo.slots(queries, 2, 0, "image", "jpg")
    found = asked.record(slots, [("xt", 4), ("x0", 1)])
    assert found == {
        "queries": [[0, 4, 3, 2], [5, 5, 2, 2], [6, 8, 3, 2], [20, 20, 3, 2]], "captures": [["x0", 1], ["xt", 4]]
    }  # fmt: skip
    again = asked.of_records([{"asked": json.loads(json.dumps(found))}])
    assert again.slots == slots.num_rows
    assert again.includes(slots).all()
    other = pa.table({"query_id": [5, 5, 9, 0, 0], "prompt_index": [1, 2, 0, 2, 2], "image_index": [1, 0, 0, 1, 2]})
    assert again.includes(other).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_prompts", "0"], "--num_prompts 0: must be at least 1"),
        (["--steps", "0"], "--steps 0: steps begin at 1"),
        (["--seconds", "nan"], "--seconds nan: must be above 0, and at most a day"),
        (["--json_file", "/none.json"], "/none.json: no such file; name the annotations with --json_file"),
        ([], "--output_base_path HERE: holds no index and no run's record"),
    ],
)
def test_invalid_flags_are_refused(tmp_path, capsys, arguments, message):
    assert main(["status", "--output_base_path", str(tmp_path), *arguments]) == 2
    assert capsys.readouterr().err == f"proxyqueue: {message.replace('HERE', str(tmp_path))}\n"


def test_half_a_million_images_are_counted_without_their_files(tmp_path, capsys):
    queries, steps = 100_000, (1, 4, 8, 16, 32)
    number = pa.array(range(queries * len(steps)))
    rows = {
        "query_id": pa.array([i // 5 for i in range(queries * 5)]),
        "prompt_index": pa.array([0] * len(number), pa.int16()),
        "image_index": pa.array([0] * len(number), pa.int16()),
        "snapshot": pa.array(["xt"] * len(number)),
        "step": pa.array([steps[i % 5] for i in range(len(number))], pa.int16()),
        "status": pa.array(["ok"] * len(number)),
        "bytes": pa.array([7] * len(number)),
    }
    writer = IndexWriter(open_output(str(tmp_path)).writer("run-1"), resolve(Generate(model_path="tiny")))
    writer.append(pa.table(rows))
    writer.commit()
    report = looked(tmp_path, capsys, "--index_only")
    assert [(line["step"], line["done"], line["bytes"]) for line in report["images"]] == [
        (step, queries, 7 * queries) for step in steps
    ]
