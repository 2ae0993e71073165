"""The verb `bench_scale`: what the queue costs when drawing costs nothing, and what millions of slots and rows cost.
Knows what is measured after what, and in which process; how is in `bench_figures`."""

import contextlib
import dataclasses
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ray_app import bench_figures, bench_machine, bench_rows
from ray_app.bench import publish, working_folder
from ray_app.bench_options import BenchScale
from ray_app.errors import OK, Refused
from ray_app.machine import versions

BLOCK = 4_096
"""Bytes by which a filesystem hands out space."""


def bench_scale(options: BenchScale) -> int:
    """Measure and report; the exit code.

    Raises:
        Refused: bad options, too little space for what is to be written.
    """
    machine = bench_machine.describe()
    with working_folder(options.work_dir) as (folder, _):
        _check_space(options, folder)
        figures = []
        for figure in _measure(options, folder):
            figures.append(figure)
            print(sentence(figure), file=sys.stderr, flush=True)
    report = {
        "machine": machine,
        "versions": versions(),
        "command": sys.argv[1:],
        "options": dataclasses.asdict(options),
        "figures": figures,
    }
    publish(report, options.format, options.output, text)
    return OK


def _measure(options: BenchScale, folder: Path) -> Iterator[dict[str, Any]]:
    """Each figure as it is measured; what a part has written is removed before the next."""
    if "images" in options.parts:
        for slots in options.slots:
            with _place(folder) as place:
                yield _fresh(bench_figures.measure_images, place, slots, options)
    if "plan" in options.parts:
        with _place(folder) as place:
            _fresh(bench_rows.write_annotations, place / "prompts.json", options.plan_slots)
            yield _fresh(bench_figures.measure_plan, place, options.plan_slots, options.steps())
    if "resume" in options.parts:
        with _place(folder) as place:
            _fresh(bench_figures.half_done, place, options.resume_slots, options.rows_a_part)
            yield _fresh(bench_figures.measure_plan, place, options.resume_slots, bench_figures.RESUME_STEPS)
    if "index" in options.parts:
        with _place(folder) as place:
            _fresh(bench_figures.many_rows, place, options.rows, options.steps(), options.rows_a_part)
            yield _fresh(bench_figures.measure_index, place, options.steps(), "as it was written")
            yield _fresh(bench_figures.measure_compact, place)
            yield _fresh(bench_figures.measure_index, place, options.steps(), "compact")


def sentence(figure: dict[str, Any]) -> str:
    """A figure in words."""
    if figure["figure"] == "images":
        memory = " ".join(f"{value:.0f}" for value in figure["driver_mb_by_quarter"])
        return (
            f"images           {figure['slots']:,} slots, {figure['images']:,} images in {figure['seconds']:.1f} s:"
            f" {figure['images_per_second']:,.0f} images/s, {figure['milliseconds_an_image']:.2f} ms an image;"
            f" driver's MB by quarter of the run: {memory}"
        )
    if figure["figure"] == "plan":
        return (
            f"plan             {figure['slots']:,} slots, {figure['images_there']:,} images there:"
            f" {figure['seconds']:.1f} s, {figure['peak_mb']:,.0f} MB at most"
        )
    if figure["figure"] == "compact":
        return (
            f"compact          {figure['rows']:,} rows in {figure['parts_before']:,} parts into {figure['parts']:,}:"
            f" {figure['seconds']:.1f} s, {figure['peak_mb']:,.0f} MB at most"
        )
    return (
        f"index            {figure['rows']:,} rows in {figure['parts']:,} parts ({figure['state']}): the plan's read"
        f" {figure['plan_read_seconds']:.1f} s, {figure['plan_read_peak_mb']:,.0f} MB at most; a count by step"
        f" {figure['count_by_step_seconds']:.2f} s; one query's {figure['one_query_rows']:,} rows"
        f" {figure['one_query_seconds']:.2f} s"
    )


def text(report: dict[str, Any]) -> str:
    """The report in lines."""
    machine = report["machine"]
    first = f"machine          {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:g} GB"
    return "\n".join([f"{first}; load before {machine['load']:g}", *map(sentence, report["figures"])])


def _fresh(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own: its memory is only what it needs."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_call, call, *arguments).result()
    except BrokenProcessPool:
        raise Refused(f"a measurement's process died ({call.__name__}; out of memory?); take smaller figures") from None


def _call(call: Callable[..., Any], *arguments: Any) -> Any:
    """In the other process: an error comes back as its words, since not every one of Ray's can travel."""
    try:
        return call(*arguments)
    except Refused:
        raise
    except Exception as error:
        last = (str(error).splitlines() or [""])[-1]  # of Ray's, the one that says what it was
        raise Refused(f"{call.__name__}: {type(error).__name__}: {last[:300]}") from None


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    place = folder / "measured"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _check_space(options: BenchScale, folder: Path) -> None:
    image = -(-options.image_bytes // BLOCK) * BLOCK
    needed = {
        "images": max(options.slots, default=0) * len(options.steps()) * image,
        "resume": options.resume_slots // 2 * BLOCK,
        "index": options.rows * 2 * 150,  # before and after compact
    }
    most = max((needed.get(part, 0) for part in options.parts), default=0)
    free = shutil.disk_usage(folder).free
    if most > 0.9 * free:
        raise Refused(f"--work_dir {folder}: {most / 1e9:.0f} GB are needed there and {free / 1e9:.0f} GB are free")
