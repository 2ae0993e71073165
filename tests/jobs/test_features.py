"""The benchmark of features: what it writes is what the other pages may quote."""

import json

import pytest

from jobs.benchmarks.features import Measure, measure
from ray_app.cli import run_module


@pytest.mark.slow
def test_every_variant_encodes_every_image(ray_local, tmp_path, capsys):
    arguments = ["--images", "6", "--rounds", "1", "--batch_size", "4", "--num_workers", "1"]
    places = ["--output", str(tmp_path / "report.json"), "--work_dir", str(tmp_path / "work")]
    assert run_module("jobs.benchmarks.features", Measure, measure, [*arguments, *places]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 12
    (measured,) = report["rounds"]
    assert set(measured) == {"loop", "features", "limit"}
    assert all(one["images_per_second"] > 0 for one in measured.values())
    assert "times the loop's images/s" in capsys.readouterr().out
