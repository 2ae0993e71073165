"""What scripts rely on: --quiet leaves errors and requested results, --format json is one object on standard output."""

import functools
import json
import re

import pytest

from ray_app import cli
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from tests.conftest import ROOT, SAMPLE
from tests.support.outputs import write_images
from tests.support.synthetic import SyntheticWorker

PAGE = ROOT / "docs" / "getting-started.md"
FLAGS = [
    *("--model_path", "tiny", "--max_inference_steps", "4", "--save_steps", "1", "4"),
    *("--num_prompts", "2", "--num_workers", "1"),
]
PLAN = {
    "queries", "queries_skipped", "slots", "unique_slots", "images_requested", "images_existing", "images_to_generate",
    "images_given_up", "denoises", "duplicates_saved", "steps_to_run",
}  # fmt: skip


@pytest.fixture
def generating(ray_local, tmp_path, monkeypatch) -> list[str]:
    """`generate` of the sample with synthetic images, as `main` takes it."""
    monkeypatch.setitem(cli.COMMANDS, "generate", (Generate, functools.partial(generate, worker=SyntheticWorker)))
    return ["generate", "--json_file", str(SAMPLE), "--output_base_path", str(tmp_path / "out"), *FLAGS]


def test_generate_reports_plan_and_summary_as_one_object(generating, tmp_path, capsys):
    reports = []
    for flags in (["--dry_run"], [], []):
        assert cli.main([*generating, *flags, "--format", "json"]) == 0
        out, err = capsys.readouterr()
        reports.append(json.loads(out))
        assert err.startswith("queries          6\n")
    planned, done, again = reports
    assert [report["state"] for report in reports] == ["planned", "complete", "complete"]
    assert all(report["plan"].keys() == PLAN for report in reports)
    assert (planned["summary"], planned["record"], again["run_id"]) == (None, None, None)
    assert [report["plan"]["images_to_generate"] for report in reports] == [24, 24, 0]
    record = json.loads((tmp_path / "out" / "runs" / f"{done['run_id']}.json").read_text())
    assert (done["record"], done["summary"]) == (f"{tmp_path}/out/runs/{done['run_id']}.json", record["summary"])
    assert not {"quiet", "format"} & record["options"].keys()


def test_generate_says_nothing_with_quiet(generating, capsys):
    assert cli.main([*generating, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main([*generating, "--quiet", "--dry_run"]) == 0
    assert "24 existing, 0 to generate" in capsys.readouterr().out
    assert cli.main([*generating, "--quiet", "--limit", "0"]) == 2
    assert capsys.readouterr().err == "proxyqueue: --limit 0: must be at least 1\n"


def test_doctor_reports_as_one_object(ray_local, tmp_path, capsys):
    code = cli.main(["doctor", "--model_path", "tiny", "--output_base_path", str(tmp_path / "out"), "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    assert code == bool(report["problems"])
    assert report.keys() == {
        "nodes", "autoscaler_max_nodes", "model", "output", "device", "max_actors", "problems",
        "tried_gpus", "nodes_not_tried",
    }  # fmt: skip
    (node,) = report["nodes"]
    assert node["is_driver"]
    assert node["versions"]["ray"]
    assert (report["model"]["path"], report["device"]) == ("tiny", "cpu")


@pytest.mark.parametrize(
    ("command", "prints"),
    [
        ("verify", True),
        ("status", True),
        ("query --preset steps", True),
        ("clean --all --dry_run", True),
        ("compact", False),
        ("export --format imagefolder", False),
        ("gallery", False),
        ("clean --all --yes", False),
    ],
)
def test_quiet_leaves_what_was_requested(command, prints, tmp_path, capsys):
    write_images(tmp_path / "out", "run-1", range(2))
    (tmp_path / "out/index/model=sdxl/part-bad.parquet").write_bytes(b"not Parquet")
    assert cli.main([*command.split(), "--output_base_path", str(tmp_path / "out"), "--quiet"]) in (0, 1)
    out, err = capsys.readouterr()
    assert err == ""
    assert bool(out) == prints


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("verify", {"output", "models", "parts", "rows", "files", "bytes", "counts", "problems"}),
        ("status", {"output", "images", "runs", "going_on"}),
    ],
)
def test_reports_of_an_output_have_the_keys_that_are_documented(command, keys, tmp_path, capsys):
    write_images(tmp_path / "out", "run-1", range(2))
    assert cli.main([command, "--output_base_path", str(tmp_path / "out"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == keys
    (row,) = re.findall(rf"^\| `{command}` \| (.*`output`.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert {key for key in keys if f"`{key}`" in row} == keys
