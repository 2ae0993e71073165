"""The command `generate`: options to recipe, slots and plan, then the driver; the summary and the exit code.
Knows the order of these stages; each is implemented elsewhere."""

import collections
import contextlib
import dataclasses
import json
import time
from typing import Any

from actors import random_weights, tiny
from actors.recipe import Recipe
from ray_app import text_table
from ray_app.annotations import circo
from ray_app.cluster import connection
from ray_app.errors import OK, SOME_FAILED
from ray_app.generation import plan, recipes
from ray_app.generation.options import Generate
from ray_app.generation.run import Run
from ray_app.generation.worker import ImageWorker
from ray_app.index import existing, requested, runs
from ray_app.index.rows import quarantine_damaged
from ray_app.interrupts import Interrupts
from ray_app.messages import LOG, summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output, Writer

COMPLETE, SOME_IMAGES_FAILED = "complete", "some failed"
"""How a run's record says that it ended, where it ran to its end."""
OF_PRINTING = ("quiet", "format")
"""Flags that a run's record leaves out: they change nothing of what is generated."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that has passed every check and can begin."""

    options: Generate
    recipe: Recipe
    plan: plan.Plan
    output: Output
    queries: int
    queries_skipped: int
    requested: dict[str, Any]


def generate(options: Generate, worker: type[ImageWorker] = ImageWorker) -> int:
    """Generate the requested images that don't exist yet; the exit code. `worker` is what the actors run.

    Raises:
        Refused: bad input, before any model is loaded; or a model or an output that fails during the run.
        KeyboardInterrupt: a signal arrived; the index is consistent, and rerunning the same command resumes.
    """
    with Interrupts() as interrupts:
        job = prepare(options)
        (print if options.dry_run and options.format == "text" else summarize)(describe(job))
        if options.dry_run:
            _print_report(job, "planned")
            return OK
        quarantine_damaged(job.output, options.model_type)
        if not job.plan.images_to_generate:
            given_up = job.plan.images_given_up
            summarize(_nothing_to_generate(job.plan))
            # the last of them may have been killed after its last row; the output may be read-only by now
            with contextlib.suppress(OSError), job.output.writing(runs.new_id()) as writer:
                runs.mark_dead_runs(writer)
            _print_report(job, SOME_IMAGES_FAILED if given_up else COMPLETE)
            return SOME_FAILED if given_up else OK
        with job.output.writing(runs.new_id(), others_write=True) as writer:
            return _generate(job, writer, interrupts, worker)


def prepare(options: Generate) -> Job:
    """Check everything that can be checked before a model is loaded, and plan. Writes nothing.

    Raises:
        Refused: the first thing that is wrong.
    """
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts, options.strict)
    queries = annotations.queries(options.query_ids, options.limit, options.idx, options.gpu_num)
    slots = circo.slots(queries, options.img_per_prompt, options.seed, options.seed_mode, options.image_format)
    _report([*annotations.skipped, *annotations.warnings])
    output = open_output(options.output_base_path)
    output.check_writable()
    recipe = recipes.resolve(options)
    _report(_odd_options(options))
    _report(recipes.check_recipe(output, recipe))
    captures = options.captures()
    masks = existing.find_existing(output, options.model_type, slots, captures, options.img_per_prompt)
    todo = plan.make_plan(slots, masks.ok, captures, given_up=masks.failed if options.skip_failed else None)
    requested_images = requested.record(slots, [(capture.snapshot, capture.step) for capture in captures])
    return Job(options, recipe, todo, output, len(queries), len(annotations.skipped), requested_images)


def _nothing_to_generate(todo: plan.Plan) -> str:
    if not todo.images_given_up:
        return f"nothing to generate: all {todo.images_requested:,} requested images exist"
    return (
        f"nothing to generate: {todo.images_existing:,} of {todo.images_requested:,} requested images exist;"
        f" {todo.images_given_up:,} failed in an earlier run and are skipped (--skip_failed)"
    )


def describe(job: Job) -> str:
    """The plan in five lines."""
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
    )


def _print_report(job: Job, state: str, writer: Writer | None = None, summary: dict[str, Any] | None = None) -> None:
    """With --format json, print what was planned and done as one object.

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


def _generate(job: Job, writer: Writer, interrupts: Interrupts, worker: type[ImageWorker]) -> int:
    """Run the plan on Ray; whatever happens, the index is consistent and the run's record says how it ended."""
    started = time.monotonic()
    writer.begin()
    record = _begin(job, writer)
    run = Run(job.plan, job.recipe, job.options, writer, record, interrupts, worker)
    outcome = {"state": "failed"}
    try:
        _remove_caches(job)
        with connection.connected(job.options.address):
            run.run()
        outcome = {"state": SOME_IMAGES_FAILED if run.counts["failed"] else COMPLETE}
    except KeyboardInterrupt:
        outcome = {"state": "interrupted"}
        raise
    except Exception as error:
        outcome = {"state": "failed", "error": str(error)}
        raise
    finally:
        summary = _summary(job, run.counts, time.monotonic() - started)
        try:
            _remove_caches(job)
            record.end(**outcome, summary=summary)
            runs.mark_dead_runs(writer)
            if run.counts["denoises"]:
                summarize(_summary_text(summary, writer))
        except OSError:
            if outcome["state"] in (COMPLETE, SOME_IMAGES_FAILED):
                raise  # else the error that is already being raised is the one to report
    _print_report(job, outcome["state"], writer, summary)
    return SOME_FAILED if run.counts["failed"] or job.plan.images_given_up else OK


def _begin(job: Job, writer: Writer) -> runs.Record:
    """Write the run's record, and check that no other active run generates the same images."""
    captures = [
        (c.snapshot, c.step) for number, c in enumerate(job.plan.captures) if job.plan.has_missing_images(number)
    ]
    work = runs.claimed_images(job.recipe.model_type, job.plan.query_ids(), captures)
    flags = {name: value for name, value in dataclasses.asdict(job.options).items() if name not in OF_PRINTING}
    recipe = dataclasses.asdict(job.recipe)
    facts = {"recipe": recipe, "options": flags, "work": work, "asked": job.requested}
    record = runs.Record(writer, model_type=job.recipe.model_type, **facts)
    record.begin()
    runs.mark_dead_runs(writer)
    try:
        if not job.options.force:
            runs.check_no_overlapping_run(writer, work)
    except BaseException:
        record.drop()
        raise
    return record


def _summary(job: Job, counts: collections.Counter[str], seconds: float) -> dict[str, Any]:
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


def _summary_text(summary: dict[str, Any], writer: Writer) -> str:
    seconds, rate = summary["wall_seconds"], summary["images_per_second"]
    return (
        f"images           {summary['images_written']:,} written, {summary['images_skipped']:,} skipped,"
        f" {summary['images_failed']:,} failed; {summary['images_truncated']:,} of truncated prompts\n"
        f"denoises         {summary['denoises']:,} in {summary['steps_run']:,} steps"
        f" ({summary['duplicates_saved']:,} duplicates saved)\n"
        f"wall time        {seconds:,} s including starting Ray and loading models; {rate:g} images/s\n"
        f"record           {writer.output.display_path(layout.run_file(writer.run_id))}"
    )


def _remove_caches(job: Job) -> None:
    """Features that retrieval scripts cached for a folder are stale once one of its images is regenerated."""
    for number, capture in enumerate(job.plan.captures):
        if job.plan.has_missing_images(number):
            folder = layout.step_folder(job.recipe.model_type, capture.snapshot, capture.step)
            job.output.remove_feature_caches(folder)


def _odd_options(options: Generate) -> list[str]:
    """Warnings about options that are allowed but probably not intended."""
    warnings = []
    if options.target_device() == "cpu" and options.model() not in (tiny.NAME, random_weights.MID):
        warnings.append(f"--device cpu: {options.model()} on CPUs takes minutes per image")
    if options.negative_prompt is not None and options.guidance_scale <= 1:
        warnings.append(f"--negative_prompt: has no effect at --guidance_scale {options.guidance_scale:g}")
    return warnings


def _report(lines: list[str], most: int = 20) -> None:
    for line in text_table.first(lines, most, " like these"):
        LOG.warning(line)
