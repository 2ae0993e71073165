"""The command `features`: what is selected, minus what exists, through the queue into parts; summary and exit code.
Knows the order of things; each thing is done elsewhere."""

import collections
import contextlib
import dataclasses
import time
from typing import Any

import pyarrow as pa

from actors import encoders
from actors.encoders import Encoder
from ray_app.annotations import circo
from ray_app.cluster import connection
from ray_app.errors import OK, SOME_FAILED, InputRefused, OutputRefused
from ray_app.features import encoder_card, plan, sources
from ray_app.features import parts as feature_parts
from ray_app.features.options import Features
from ray_app.features.plan import Plan
from ray_app.features.run import Run
from ray_app.features.worker import FeatureWorker
from ray_app.index import runs
from ray_app.interrupts import Interrupts
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output, Writer


@dataclasses.dataclass(frozen=True)
class Job:
    """A run that has passed every check and can begin."""

    options: Features
    encoder: Encoder
    recipe: dict[str, str]
    plan: Plan
    places: list[Output]
    existing: feature_parts.FeatureParts

    @property
    def output(self) -> Output:
        """Where the features go."""
        return self.places[sources.OWN]


def features(options: Features, worker: type[FeatureWorker] = FeatureWorker) -> int:
    """Encode what these options select and has no vector yet; the exit code. `worker` is what the actors run.

    Raises:
        Refused: bad input, before any encoder is loaded; or an encoder or an output that fails on the way.
        KeyboardInterrupt: a signal came; rerunning the same command resumes.
    """
    with Interrupts() as interrupts:
        job = prepare(options)
        if options.dry_run:
            print(describe(job), flush=True)  # the requested result, with --quiet too
            return OK
        summarize(describe(job))
        for part in job.existing.damaged:
            job.output.quarantine(part)
        if job.plan.is_done:
            summarize(f"nothing to encode: all {job.plan.vectors:,} requested vectors exist")
            with contextlib.suppress(OSError), job.output.writing(runs.new_id()) as writer:
                runs.mark_dead_runs(writer)
            return OK
        with job.output.writing(runs.new_id()) as writer:
            return _encode(job, writer, interrupts, worker)


def prepare(options: Features) -> Job:
    """Check everything that can be checked before an encoder is loaded, read the images' checksums, and plan.

    Raises:
        Refused: the first thing that is wrong.
    """
    output = open_output(options.output_base_path)
    output.check_writable()
    encoder = encoder_card.resolve(options)
    texts = circo.texts(options.json_file, options.texts) if options.json_file is not None else []
    gallery = None if options.images is None else sources.Gallery(options.images)
    existing = feature_parts.FeatureParts.of(output, encoder.path)
    if existing.vector_size not in (None, encoder.vector_size):
        raise OutputRefused(
            f"{output.display_path(existing.folder)}: holds vectors of {existing.vector_size} numbers, those of"
            f" {encoder.path} have {encoder.vector_size}; take another --output_base_path, or rename the encoder's"
            " folder"
        )
    images = _select_images(output, options, gallery)
    if not images.num_rows and not texts:
        raise InputRefused(f"{output.url}: no images of an index in it; set --output_base_path, --images or --texts")
    recipe = {"encoder": encoder.path, "revision": encoder.revision, "preprocessing": encoder.preprocessing}
    places = [output, *([gallery.place] if gallery else [])]
    return Job(options, encoder, recipe, plan.make_plan(images, texts, existing, recipe), places, existing)


def _select_images(output: Output, options: Features, gallery: sources.Gallery | None) -> pa.Table:
    own = sources.own_images(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    selection = {"model_type": options.model_type, "steps": options.steps, "snapshot": options.snapshot}
    given = [f"--{name} {' '.join(map(str, value)) if name == 'steps' else value}"
             for name, value in selection.items() if value]  # fmt: skip
    if given and not own.num_rows:
        raise InputRefused(f"{output.url}: no image of {' '.join(given)} in its index")
    return own if gallery is None else pa.concat_tables([own, gallery.read()])


def describe(job: Job) -> str:
    """The plan in four lines."""
    todo, encoder = job.plan, job.encoder
    return (
        f"encoder          {encoder.path} ({encoder.preprocessing}, {encoder.vector_size} numbers per vector)\n"
        f"images           {todo.images:,}\n"
        f"texts            {todo.texts:,}\n"
        f"vectors          {todo.vectors:,} requested, {todo.existing:,} existing, {todo.items.num_rows:,} to encode"
    )


def _encode(job: Job, writer: Writer, interrupts: Interrupts, worker: type[FeatureWorker]) -> int:
    """Run the plan on Ray; whatever happens, what is encoded is committed and the record says how the run ended."""
    started = time.monotonic()
    writer.begin()
    facts = {"encoder": dataclasses.asdict(job.encoder), "options": runs.recorded_flags(job.options)}
    record = runs.Record(writer, kind="features", **facts)
    record.begin()
    runs.mark_dead_runs(writer)
    rows = feature_parts.FeaturesWriter(writer, job.encoder.path, job.recipe, job.encoder.vector_size)
    run = Run(job.plan, job.encoder, job.options, job.places, rows, record, interrupts, worker)

    def end(outcome: dict[str, Any]) -> None:
        summary = _summary(job, run.counts, time.monotonic() - started)
        record.end(**outcome, summary=summary)
        summarize(_summary_text(summary, job, writer))

    with runs.end_recorded(run.counts, end):
        _write_known(job, rows, run.counts)
        if job.plan.items.num_rows:
            with connection.connected(job.options.address):
                run.run()
    return SOME_FAILED if run.counts["failed"] else OK


def _write_known(job: Job, rows: feature_parts.FeaturesWriter, counts: collections.Counter[str]) -> None:
    """Rows that need no encoder: other names of encoded images, and images whose files can't be read."""
    with rows:
        for table in plan.copied_rows(job.existing, job.plan.copies, job.recipe):
            rows.append(table)
            rows.commit_if_due()
            counts["ok"] += table.num_rows
        if job.plan.unreadable.num_rows:
            rows.append(plan.failed_rows(job.plan.unreadable))
            counts["failed"] += job.plan.unreadable.num_rows


def _summary(job: Job, counts: collections.Counter[str], seconds: float) -> dict[str, Any]:
    return {
        "vectors_written": counts["ok"],
        "vectors_skipped": job.plan.existing,
        "vectors_failed": counts["failed"],
        "encoded": counts["encoded"],
        "batches_replayed": counts["replayed"],
        "wall_seconds": round(seconds, 1),
        "encoded_per_second": round(counts["encoded"] / seconds, 2),
    }


def _summary_text(summary: dict[str, Any], job: Job, writer: Writer) -> str:
    folder = layout.features_folder(encoders.folder_name(job.encoder.path))
    return (
        f"vectors          {summary['vectors_written']:,} written, {summary['vectors_skipped']:,} skipped,"
        f" {summary['vectors_failed']:,} failed\n"
        f"wall time        {summary['wall_seconds']:,} s with starting Ray and loading the encoder;"
        f" {summary['encoded_per_second']:g} encoded/s\n"
        f"parts            {writer.output.display_path(folder)}\n"
        f"record           {writer.output.display_path(layout.run_file(writer.run_id))}"
    )
