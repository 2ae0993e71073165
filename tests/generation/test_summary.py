"""What a run says of itself at its end: the counts, and how fast it was."""

import collections

import pytest

from ray_app.generation.job import prepare
from ray_app.generation.options import Generate
from ray_app.generation.report import describe_run, summarize_run
from tests.conftest import SAMPLE


@pytest.fixture
def job(tmp_path):
    """24 slots at two steps, two of which request the same denoising pass."""
    flags = {"model_path": "tiny", "max_inference_steps": 4, "save_steps": ("1", "4"), "num_prompts": 4}
    return prepare(Generate(json_file=str(SAMPLE), output_base_path=str(tmp_path / "out"), **flags))


def test_a_summary_counts_and_tells_seconds_and_rate(job):
    counts = collections.Counter(ok=40, failed=8, truncated=6, denoises=23, steps=92, replayed=2)
    summary = summarize_run(job, counts, seconds=90.06)
    assert summary == {
        "queries": 6,
        "queries_skipped": 0,
        "slots": 24,
        "denoises": 23,
        "duplicates_saved": 1,
        "images_written": 40,
        "images_skipped": 0,
        "images_failed": 8,
        "images_truncated": 6,
        "images_given_up": 0,
        "batches_replayed": 2,
        "steps_run": 92,
        "wall_seconds": 90.1,
        "images_per_second": 0.44,
    }
    assert describe_run(summary, job.output.writer("run-1")).splitlines()[:3] == [
        "images           40 written, 0 skipped, 8 failed; 6 of truncated prompts",
        "denoises         23 in 92 steps (1 duplicates saved)",
        "wall time        90.1 s including starting Ray and loading models; 0.44 images/s",
    ]
