"""The benchmark of `evaluate`: it measures what it says, at a size that costs nothing."""

import json

from jobs.benchmarks.evaluate import measure_evaluate
from jobs.benchmarks.options import EvaluateScale


def test_rankings_are_counted_and_measured(tmp_path, capsys):
    report = tmp_path / "evaluate.json"
    options = EvaluateScale(queries=6, images=300, width=8, steps=2, weights=3, controls=True, output=str(report))
    assert measure_evaluate(options) == 0
    figure = json.loads(report.read_text())["figure"]
    assert figure["rankings"] == 2 * 3 * 3
    assert min(figure["rank_seconds"], figure["score_seconds"], figure["peak_mb"]) > 0
    assert "18 rankings of 300 images for 6 queries" in capsys.readouterr().out
