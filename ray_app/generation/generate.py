"""The command `generate`: a job is prepared and run; its record, the summary and the exit code.
Knows the order of these stages; each is implemented elsewhere."""

import contextlib
import dataclasses
import time
from typing import Any

from ray_app.cluster import connection
from ray_app.errors import OK, SOME_FAILED
from ray_app.generation import report
from ray_app.generation.job import Job, prepare
from ray_app.generation.options import Generate
from ray_app.generation.run import Run
from ray_app.generation.worker import ImageWorker
from ray_app.index import runs
from ray_app.index.rows import quarantine_damaged
from ray_app.interrupts import Interrupts
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.output import Writer


def generate(options: Generate, worker: type[ImageWorker] = ImageWorker) -> int:
    """Generate the requested images that don't exist yet; the exit code. `worker` is what the actors run.

    Raises:
        Refused: bad input, before any model is loaded; or a model or an output that fails during the run.
        KeyboardInterrupt: a signal arrived; the index is consistent, and rerunning the same command resumes.
    """
    with Interrupts() as interrupts, contextlib.ExitStack() as cluster:
        job = prepare(options, lambda: cluster.enter_context(connection.connected(options.address)))
        if options.dry_run and options.format == "text":
            print(report.describe(job), flush=True)  # the requested result, with --quiet too
            return OK
        summarize(report.describe(job))
        if options.dry_run:
            report.print_json(job, "planned")
            return OK
        quarantine_damaged(job.output, options.model_type)
        if not job.plan.images_to_generate:
            given_up = job.plan.images_given_up
            summarize(report.nothing_to_generate(job.plan))
            # the last of them may have been killed after its last row; the output may be read-only by now
            with contextlib.suppress(OSError), job.output.writing(runs.new_id()) as writer:
                runs.mark_dead_runs(writer)
            report.print_json(job, runs.SOME_FAILED if given_up else runs.COMPLETE)
            return SOME_FAILED if given_up else OK
        with job.output.writing(runs.new_id(), others_write=True) as writer:
            return _generate(job, writer, interrupts, worker)


def _generate(job: Job, writer: Writer, interrupts: Interrupts, worker: type[ImageWorker]) -> int:
    """Run the plan on Ray; whatever happens, the index is consistent and the run's record says how it ended."""
    started = time.monotonic()
    writer.begin()
    record = _begin(job, writer)
    run = Run(job.plan, job.recipe, job.options, writer, record, interrupts, worker)

    def end(outcome: dict[str, Any]) -> None:
        summary = report.summarize_run(job, run.counts, time.monotonic() - started)
        _remove_caches(job)
        record.end(**outcome, summary=summary, notices=run.notices, hardware=run.index.hardware)
        runs.mark_dead_runs(writer)
        if run.counts["denoises"]:
            summarize(report.describe_run(summary, writer))
        if runs.has_ended_well(outcome["state"]):
            report.print_json(job, outcome["state"], writer, summary)

    with runs.end_recorded(run.counts, end):
        _remove_caches(job)
        with connection.connected(job.options.address):
            run.run()
    return SOME_FAILED if run.counts["failed"] or job.plan.images_given_up else OK


def _begin(job: Job, writer: Writer) -> runs.Record:
    """Write the run's record, and check that no other active run generates the same images."""
    captures = [
        (c.snapshot, c.step) for number, c in enumerate(job.plan.captures) if job.plan.has_missing_images(number)
    ]
    work = runs.claimed_images(job.recipe.model_type, job.plan.query_ids(), captures)
    facts = {"recipe": dataclasses.asdict(job.recipe), "options": runs.recorded_flags(job.options)}
    facts |= {"work": work, "asked": job.requested}
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


def _remove_caches(job: Job) -> None:
    """Features that retrieval scripts cached for a folder are stale once one of its images is regenerated."""
    for number, capture in enumerate(job.plan.captures):
        if job.plan.has_missing_images(number):
            folder = layout.step_folder(job.recipe.model_type, capture.snapshot, capture.step)
            job.output.remove_feature_caches(folder)
