"""What `generate` reports of a plan and of a run: texts for people, and one JSON object with --format json.
Knows a job and the counts of its run; runs nothing."""

import collections
import json
from typing import Any

from ray_app.generation import automatic
from ray_app.generation.job import Job
from ray_app.generation.plan import Plan
from ray_app.output import layout
from ray_app.output.output import Writer


def describe(job: Job) -> str:
    """The plan in five lines, and one for each flag that was chosen automatically."""
    todo = job.plan
    separate = todo.slots * sum(capture.step for capture in todo.captures if capture.snapshot == "xt")
    compared = f" (a run for each step count: {separate:,})" if separate else ""
    requested, existing_images = todo.images_requested, todo.images_existing
    return (
        f"queries          {job.queries:,}\n"
        f"slots            {todo.slots:,} ({todo.unique_denoises:,} unique)\n"
        f"images           {requested:,} requested, {existing_images:,} existing,"
        f" {todo.images_to_generate:,} to generate\n"
        f"denoises to do   {todo.denoises.num_rows:,} ({todo.duplicates_saved:,} duplicates saved)\n"
        f"steps to run     {todo.steps_to_run(job.recipe.mode == 'separate'):,}{compared}"
        f"{automatic.describe(job.options, job.recipe)}"
    )


def nothing_to_generate(todo: Plan) -> str:
    """Why a plan generates no image."""
    if not todo.images_given_up:
        return f"nothing to generate: all {todo.images_requested:,} requested images exist"
    return (
        f"nothing to generate: {todo.images_existing:,} of {todo.images_requested:,} requested images exist;"
        f" {todo.images_given_up:,} failed in an earlier run and are skipped (--skip_failed)"
    )


def summarize_run(job: Job, counts: collections.Counter[str], seconds: float) -> dict[str, Any]:
    """What a run's record says of it at its end."""
    return {
        "queries": job.queries,
        "queries_skipped": job.queries_skipped,
        "slots": job.plan.slots,
        "denoises": counts["denoises"],
        "duplicates_saved": job.plan.duplicates_saved,
        "images_written": counts["ok"],
        "images_skipped": job.plan.images_existing,
        "images_failed": counts["failed"],
        "images_truncated": counts["truncated"],
        "images_given_up": job.plan.images_given_up,
        "batches_replayed": counts["replayed"],
        "steps_run": counts["steps"],
        "wall_seconds": round(seconds, 1),
        "images_per_second": round(counts["ok"] / seconds, 2),
    }


def describe_run(summary: dict[str, Any], writer: Writer) -> str:
    """The same in four lines."""
    seconds, rate = summary["wall_seconds"], summary["images_per_second"]
    return (
        f"images           {summary['images_written']:,} written, {summary['images_skipped']:,} skipped,"
        f" {summary['images_failed']:,} failed; {summary['images_truncated']:,} of truncated prompts\n"
        f"denoises         {summary['denoises']:,} in {summary['steps_run']:,} steps"
        f" ({summary['duplicates_saved']:,} duplicates saved)\n"
        f"wall time        {seconds:,} s including starting Ray and loading models; {rate:g} images/s\n"
        f"record           {writer.output.display_path(layout.run_file(writer.run_id))}"
    )


def print_json(job: Job, state: str, writer: Writer | None = None, summary: dict[str, Any] | None = None) -> None:
    """Print what was planned and done as one object, with --format json only.

    Args:
        state: "planned" with --dry_run, else how the run ended; "complete" too where nothing was to be generated.
        writer, summary: of a run that began; its record has the same summary.
    """
    if job.options.format != "json":
        return
    todo = job.plan
    plan_counts = {
        "queries": job.queries,
        "queries_skipped": job.queries_skipped,
        "slots": todo.slots,
        "unique_slots": todo.unique_denoises,
        "images_requested": todo.images_requested,
        "images_existing": todo.images_existing,
        "images_to_generate": todo.images_to_generate,
        "images_given_up": todo.images_given_up,
        "denoises": todo.denoises.num_rows,
        "duplicates_saved": todo.duplicates_saved,
        "steps_to_run": todo.steps_to_run(job.recipe.mode == "separate"),
    }
    report = {
        "output": job.output.url,
        "model": job.recipe.model_type,
        "state": state,
        "plan": plan_counts,
        "run_id": writer.run_id if writer else None,
        "record": writer.output.display_path(layout.run_file(writer.run_id)) if writer else None,
        "summary": summary,
    }
    print(json.dumps(report, ensure_ascii=False, indent=1), flush=True)
