"""`python -m jobs.benchmarks.scale`: what the queue costs when images cost nothing, and what millions of rows cost.
Knows the order of the measurements and their processes; each measurement is in `figures`."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.benchmarks import figures, rows
from jobs.benchmarks.machine import describe
from jobs.benchmarks.options import Scale
from jobs.benchmarks.processes import fresh_processes
from jobs.benchmarks.report import write_json
from jobs.benchmarks.work import working_folder
from ray_app.cli import run_module
from ray_app.errors import OK, InputRefused
from ray_app.files import check_place
from ray_app.machine import versions

BLOCK = 4_096
"""Block size of a filesystem, in bytes."""


def measure_scale(options: Scale) -> int:
    """Measure and report; the exit code.

    Raises:
        Refused: bad options, too little space for what is to be written.
    """
    check_place(Path(options.output), "--output")
    machine = describe()
    with working_folder(options.work_dir) as (folder, _):
        _check_space(options, folder)
        measured = []
        for figure in _measure(options, folder):
            measured.append(figure)
            print(sentence(figure), file=sys.stderr, flush=True)
    report = {
        "machine": machine,
        "versions": versions(),
        "command": sys.argv[1:],
        "options": dataclasses.asdict(options),
        "figures": measured,
    }
    print(text(report))
    write_json(report, options.output)
    return OK


def _measure(options: Scale, folder: Path) -> Iterator[dict[str, Any]]:
    """Each figure as it is measured; what one part has written is removed before the next one."""
    if "images" in options.parts:
        for slots in options.slots:
            with _place(folder) as place:
                yield _fresh(figures.measure_images, place, slots, options)
    if "plan" in options.parts:
        with _place(folder) as place:
            _fresh(rows.write_annotations, place / "prompts.json", options.plan_slots)
            yield _fresh(figures.measure_plan, place, options.plan_slots, options.steps())
    if "resume" in options.parts:
        with _place(folder) as place:
            _fresh(figures.half_done, place, options.resume_slots, options.rows_a_part)
            yield _fresh(figures.measure_plan, place, options.resume_slots, figures.RESUME_STEPS)
    if "index" in options.parts:
        with _place(folder) as place:
            _fresh(figures.many_rows, place, options.rows, options.steps(), options.rows_a_part)
            yield _fresh(figures.measure_index, place, options.steps(), "as it was written")
            yield _fresh(figures.measure_compact, place)
            yield _fresh(figures.measure_index, place, options.steps(), "compact")


def sentence(figure: dict[str, Any]) -> str:
    """A figure in words."""
    if figure["figure"] == "images":
        memory = " ".join(f"{value:.0f}" for value in figure["driver_mb_by_quarter"])
        return (
            f"images           {figure['slots']:,} slots, {figure['images']:,} images in {figure['seconds']:.1f} s:"
            f" {figure['images_per_second']:,.0f} images/s, {figure['milliseconds_an_image']:.2f} ms per image;"
            f" driver's MB by quarter of the run: {memory}"
        )
    if figure["figure"] == "plan":
        return (
            f"plan             {figure['slots']:,} slots, {figure['images_there']:,} images existing:"
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
    with fresh_processes(1) as processes:
        (result,) = processes.call_in_each(call, [arguments])
    return result


@contextlib.contextmanager
def _place(folder: Path) -> Iterator[Path]:
    place = folder / "measured"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def _check_space(options: Scale, folder: Path) -> None:
    image = -(-options.image_bytes // BLOCK) * BLOCK
    needed = {
        "images": max(options.slots, default=0) * len(options.steps()) * image,
        "resume": options.resume_slots // 2 * BLOCK,
        "index": options.rows * 2 * 150,  # before and after compact
    }
    most = max((needed.get(part, 0) for part in options.parts), default=0)
    free = shutil.disk_usage(folder).free
    if most > 0.9 * free:
        raise InputRefused(
            f"--work_dir {folder}: {most / 1e9:.0f} GB are needed there and {free / 1e9:.0f} GB are free"
        )


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.scale", Scale, measure_scale))
