"""What the queue costs, one measurement per function: images that cost nothing, plans, an index of many rows.
Each function runs in its own process, so that its memory is only what it needs; does not decide their order."""

import contextlib
import io
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.benchmarks import rows as made_rows
from jobs.benchmarks import synthetic_images
from jobs.benchmarks.options import Scale
from ray_app.cluster import connection as cluster
from ray_app.errors import InputRefused
from ray_app.flags import DEFAULT_MODEL_TYPE
from ray_app.generation.generate import generate
from ray_app.generation.job import prepare
from ray_app.index import existing, partition, runs
from ray_app.index.rows import read_rows
from ray_app.maintenance.rewrite import rewrite
from ray_app.output import layout
from ray_app.output.open import open_output

RESUME_STEPS = (32,)
"""The slots of a run that is half done: one file each."""
SAMPLE_SECONDS = 0.25
REPEATS = 3
"""Of a query; the median counts."""

COUNT_BY_STEP = """SELECT step, count(*) AS images FROM read_parquet('{index}', hive_partitioning = true)
WHERE status = 'ok' GROUP BY step ORDER BY step"""
ONE_QUERY = """SELECT * FROM read_parquet('{index}', hive_partitioning = true) WHERE query_id = {query_id}
QUALIFY row_number() OVER (PARTITION BY model, query_id, prompt_index, image_index, snapshot, step
                           ORDER BY created_at DESC) = 1"""


def measure_images(folder: Path, slots: int, options: Scale) -> dict[str, Any]:
    """Slots through Ray, the writer and the index, with a generator that costs nothing."""
    annotations, output, notes = folder / "prompts.json", folder / "out", folder / "notes"
    notes.mkdir()
    made_rows.write_annotations(annotations, slots)
    flags = {"batch_size": options.batch_size, "num_workers": options.num_workers}
    requested = made_rows.request_options(annotations, output, options.steps(), **flags)
    with cluster.connected("local"), _Memory() as memory, contextlib.redirect_stdout(io.StringIO()):
        began = time.time()
        code = generate(requested, worker=synthetic_images.synthetic_worker(options.image_bytes, notes))
        ended = time.time()
    parts = list((output / layout.index_folder(DEFAULT_MODEL_TYPE)).iterdir())
    first, last = synthetic_images.first(notes), max(part.stat().st_mtime for part in parts)
    rows = read_rows(open_output(str(output)), DEFAULT_MODEL_TYPE, ["bytes", "status"])
    images = rows["status"].to_pylist().count("ok")
    if code or images != slots * len(options.steps()):
        raise InputRefused(
            f"{images:,} of {slots * len(options.steps()):,} images were written; retry with --slots 100"
        )
    return {
        "figure": "images",
        "slots": slots,
        "images": images,
        "seconds": last - first,
        "images_per_second": images / (last - first),
        "milliseconds_an_image": 1000 * (last - first) / images,
        "seconds_with_plan_and_loading": ended - began,
        "parts": len(parts),
        "driver_mb_by_quarter": memory.by_quarter(first, last),
    }


def measure_plan(folder: Path, slots: int, steps: Sequence[int]) -> dict[str, Any]:
    """Everything that generate does before the first image, on an output with existing images."""
    options = made_rows.request_options(folder / "prompts.json", folder / "out", steps)
    before = _status_mb("VmRSS")
    began = time.perf_counter()
    job = prepare(options)
    return {
        "figure": "plan",
        "slots": slots,
        "images_there": job.plan.images_existing,
        "images_to_draw": job.plan.images_to_generate,
        "denoises": job.plan.denoises.num_rows,
        "seconds": time.perf_counter() - began,
        "peak_mb": _status_mb("VmHWM"),
        "before_mb": before,
    }


def half_done(folder: Path, slots: int, rows_a_part: int) -> None:
    """An output that has a row and a file of one byte for half of its slots."""
    made_rows.write_annotations(folder / "prompts.json", slots)
    options = made_rows.request_options(folder / "prompts.json", folder / "out", RESUME_STEPS)
    done = made_rows.slots_of(options).slice(0, slots // 2)
    with open_output(str(folder / "out")).writing(runs.new_id()) as writer:
        made_rows.fill(writer, options, done, rows_a_part, files=True)


def many_rows(folder: Path, rows: int, steps: Sequence[int], rows_a_part: int) -> None:
    """An index alone."""
    made_rows.write_annotations(folder / "prompts.json", max(1, rows // len(steps)))
    options = made_rows.request_options(folder / "prompts.json", folder / "out", steps)
    with open_output(str(folder / "out")).writing(runs.new_id()) as writer:
        made_rows.fill(writer, options, made_rows.slots_of(options), rows_a_part, files=False)


def measure_index(folder: Path, steps: Sequence[int], state: str) -> dict[str, Any]:
    """What the plan reads of an index, a count by step, one query's rows."""
    options = made_rows.request_options(folder / "prompts.json", folder / "out", steps)
    output = open_output(options.output_base_path)
    slots = made_rows.slots_of(options)
    before = _status_mb("VmRSS")
    began = time.perf_counter()
    existing.find_existing(output, DEFAULT_MODEL_TYPE, slots, options.captures(), options.img_per_prompt)
    seconds, peak = time.perf_counter() - began, _status_mb("VmHWM")
    pattern = f"{options.output_base_path}/{layout.INDEX}/**/*.parquet"
    middle = slots["query_id"][slots.num_rows // 2].as_py()
    count, counted = _ask(COUNT_BY_STEP.format(index=pattern))
    one, rows = _ask(ONE_QUERY.format(index=pattern, query_id=middle))
    return {
        "figure": "index",
        "state": state,
        "parts": len(partition.part_names(output, DEFAULT_MODEL_TYPE)),
        "rows": sum(counted["images"].to_pylist()),
        "plan_read_seconds": seconds,
        "plan_read_peak_mb": peak,
        "before_mb": before,
        "count_by_step_seconds": count,
        "one_query_seconds": one,
        "one_query_rows": rows.num_rows,
    }


def measure_compact(folder: Path) -> dict[str, Any]:
    """Rewrite an index's parts as few."""
    began = time.perf_counter()
    with open_output(str(folder / "out")).writing(runs.new_id()) as writer:
        done = rewrite(writer, DEFAULT_MODEL_TYPE)
    return {
        "figure": "compact",
        "rows": done.rows,
        "parts_before": done.parts_before,
        "parts": done.parts,
        "seconds": time.perf_counter() - began,
        "peak_mb": _status_mb("VmHWM"),
    }


class _Memory:
    """Samples this process's own memory inside a `with`: without the pages of Ray's object store that it has read."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def by_quarter(self, began: float, ended: float) -> list[float]:
        """The maximum in each quarter of the time, in MB; quarters without a sample are left out."""
        quarters: dict[int, float] = {}
        for moment, used in self._samples:
            if began <= moment <= ended:
                quarter = min(3, int(4 * (moment - began) / (ended - began)))
                quarters[quarter] = max(used, quarters.get(quarter, 0.0))
        return [quarters[quarter] for quarter in sorted(quarters)]

    def _sample(self) -> None:
        while True:
            self._samples.append((time.time(), _status_mb("VmRSS") - _status_mb("RssShmem")))
            if self._over.wait(SAMPLE_SECONDS):
                return


def _status_mb(field: str) -> float:
    """A figure of this process: VmRSS, its memory now; RssShmem, the shared part of it; VmHWM, its maximum.

    getrusage's would be the parent's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024, 1)


def _ask(sql: str) -> tuple[float, pa.Table]:
    """Median seconds of a query on a fresh connection, and its result."""
    import duckdb

    seconds, rows = [], pa.table({})
    for _ in range(REPEATS):
        began = time.perf_counter()
        with duckdb.connect() as connection:
            rows = connection.sql(sql).to_arrow_table()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), rows
