"""The scale benchmark's figures are right: what is written is what was requested, in fresh processes. No timing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmarks import figures, rows, scale
from jobs.benchmarks.options import Scale
from ray_app.index.partition import part_names
from ray_app.index.rows import read_rows
from ray_app.output.open import open_output

pytestmark = pytest.mark.timeout(300)


def test_images_that_cost_nothing_go_the_real_way(ray_local, tmp_path):
    options = Scale(save_steps=("1", "32"), image_bytes=1_000, batch_size=4, num_workers="1")
    figure = figures.measure_images(tmp_path, 10, options)
    assert (figure["slots"], figure["images"]) == (10, 20)
    assert figure["images_per_second"] == pytest.approx(20 / figure["seconds"])
    assert figure["milliseconds_an_image"] == pytest.approx(1000 * figure["seconds"] / 20)
    files = list((tmp_path / "out").rglob("combined_*.jpg"))
    assert [file.stat().st_size for file in files] == [1_000] * 20
    assert len({file.read_bytes() for file in files}) == 20
    assert "10 slots, 20 images" in scale.sentence(figure)


def test_a_half_done_output_is_planned_from_its_middle(tmp_path):
    figures.half_done(tmp_path, 200, rows_a_part=30)
    figure = figures.measure_plan(tmp_path, 200, figures.RESUME_STEPS)
    assert (figure["images_there"], figure["images_to_draw"]) == (100, 100)
    assert figure["peak_mb"] >= figure["before_mb"] > 0
    output = open_output(str(tmp_path / "out"))
    assert len(part_names(output, "sdxl")) == 4
    for path in read_rows(output, "sdxl", ["path"])["path"].to_pylist():
        assert Path(output.path(path)).stat().st_size == 1


def test_an_index_is_asked_before_and_after_compact(tmp_path):
    figures.many_rows(tmp_path, 1_000, [1, 32], rows_a_part=100)
    before = figures.measure_index(tmp_path, [1, 32], "as it was written")
    compact = figures.measure_compact(tmp_path)
    after = figures.measure_index(tmp_path, [1, 32], "compact")
    assert (compact["parts_before"], compact["parts"], compact["rows"]) == (10, 1, 1_000)
    assert (before["parts"], after["parts"]) == (10, 1)
    for figure in (before, after):
        assert (figure["rows"], figure["one_query_rows"]) == (1_000, 10)
    options = rows.request_options(tmp_path / "prompts.json", tmp_path / "out", [1, 32])
    columns = read_rows(open_output(options.output_base_path), "sdxl", ["sha256", "path"]).to_pydict()
    assert len(set(columns["sha256"])) == len(set(columns["path"])) == 1_000
    assert {len(digest) for digest in columns["sha256"]} == {64}


def test_the_command_measures_in_fresh_processes(tmp_path):
    command = "-m jobs.benchmarks.scale --parts plan --plan_slots 50 --output report.json --work_dir work"
    result = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    (figure,) = report["figures"]
    assert (figure["slots"], figure["images_there"], figure["images_to_draw"]) == (50, 0, 250)
    assert scale.sentence(figure) in result.stdout
    assert not list((tmp_path / "work").iterdir())
