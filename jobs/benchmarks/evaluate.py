"""`python -m jobs.benchmarks.evaluate`: what ranking a gallery costs, by queries, steps and weights; on random vectors.
Knows what is measured, in a fresh process; how galleries are ranked is in `ray_app.evaluation`."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jobs.benchmarks.machine import describe
from jobs.benchmarks.options import EvaluateScale
from jobs.benchmarks.processes import fresh_processes
from jobs.benchmarks.report import write_json
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.evaluation import scores_table
from ray_app.evaluation.features import lengths
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.queries import ScoredQuery
from ray_app.evaluation.scoring import GroupVectors, rank, score
from ray_app.files import check_place
from ray_app.machine import versions

RIGHT_IMAGES = 4
"""Per query; CIRCO has 4.5 on average."""
ROWS_AT_ONCE = 10_000
DRAWS = 10_000


def measure_evaluate(options: EvaluateScale) -> int:
    """Measure and report; the exit code."""
    check_place(Path(options.output), "--output")
    machine = describe()
    with fresh_processes(1) as processes:
        (figure,) = processes.call_in_each(_measure, [(options,)])
    print(f"machine          {machine['cores']} cores of {machine['cpu']}; load before {machine['load']:g}")
    print(
        f"ranking          {figure['rankings']:,} rankings of {options.images:,} images for"
        f" {options.queries:,} queries: {figure['rank_seconds']:.1f} s, {figure['rank_cpu_seconds']:.1f} s of CPU time"
    )
    print(f"scores           {figure['score_seconds']:.1f} s, with intervals of {figure['rows']:,} rows")
    print(f"peak             {figure['peak_mb']:,.0f} MB, {figure['vectors_mb']:,.0f} MB of them vectors")
    options_shown = dataclasses.asdict(options)
    report = {"machine": machine, "versions": versions(), "options": options_shown, "figure": figure}
    write_json(report, options.output)
    return OK


def _measure(options: EvaluateScale) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    gallery = Gallery([str(number) for number in range(options.images)], _units(chance, options.images, options.width))
    steps = list(range(1, options.steps + 1))
    text = _units(chance, options.queries, options.width)
    proxies = {step: _units(chance, options.queries, options.width) for step in steps}
    queries = [_query(number, chance.integers(0, options.images, RIGHT_IMAGES)) for number in range(options.queries)]
    group = _NoControls(queries, steps, text, None, None, proxies, {})
    if options.controls:
        group = GroupVectors(queries, steps, text, None, None, proxies, {})
    weights = np.linspace(0, 1, options.weights).round(6).tolist()
    began, began_cpu = time.perf_counter(), time.process_time()
    rankings = rank(group, gallery, ["text+proxy"], weights, 0)
    ranked, ranked_cpu = time.perf_counter(), time.process_time()
    scores = score(group, gallery, rankings)
    rows = scores_table.rows(scores, queries, steps[-1], DRAWS, 0)
    return {
        "rankings": len(rankings),
        "rows": len(rows),
        "rank_seconds": ranked - began,
        "rank_cpu_seconds": ranked_cpu - began_cpu,
        "score_seconds": time.perf_counter() - ranked,
        "peak_mb": _peak_mb(),
        "vectors_mb": (gallery.vectors.nbytes + text.nbytes * (1 + len(steps))) / 1e6,
    }


class _NoControls(GroupVectors):
    """Own proxies only."""

    def controls_of(self, method: str) -> list[str]:
        return ["none"]


def _query(number: int, right: np.ndarray) -> ScoredQuery:
    relevant = tuple(dict.fromkeys(map(str, right.tolist())))
    return ScoredQuery(number, "", "", (), (), relevant, relevant[0], ())


def _units(chance: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random vectors of length 1: float32 (rows, width)."""
    vectors = np.empty((rows, width), np.float32)
    for start in range(0, rows, ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE]
        chance.standard_normal(out=block, dtype=np.float32)
        block /= lengths(block)[:, None]
    return vectors


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.evaluate", EvaluateScale, measure_evaluate))
