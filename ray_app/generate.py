"""The verb `generate`: options to recipe, slots and plan, then the driver; the summary and the exit code.
Knows the order of things; each thing is done elsewhere."""

import collections
import dataclasses
import sys
import time
from typing import Any

from ray_app import circo, cluster, driver, existing, layout, plan, recipes, runs
from ray_app.errors import OK, SOME_FAILED
from ray_app.index import IndexWriter
from ray_app.interrupts import Interrupts
from ray_app.options import Generate
from ray_app.storage import Storage


def generate(options: Generate) -> int:
    """Draw what these options ask for and is not there yet; the exit code.

    Raises:
        Refused: bad input, before any model is loaded; or a model or output that fails on the way.
        KeyboardInterrupt: a signal came; the index is true and the same command goes on.
    """
    interrupts = Interrupts()
    interrupts.install()
    started = time.monotonic()
    options.check()
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts, options.strict)
    queries = annotations.queries(options.query_ids, options.limit, options.idx, options.gpu_num)
    slots = circo.slots(queries, options.img_per_prompt, options.seed, options.seed_mode, options.image_format)
    _report(annotations.skipped + annotations.warnings)
    storage = Storage(options.output_base_path, runs.new_id())
    storage.check_writable(create=False)
    recipe = recipes.resolve(options)
    if recipe.device == "cpu" and options.model_path != "tiny":
        _report([f"--device cpu: {recipe.model_path} is drawn on CPUs; expect minutes an image"])
    if options.negative_prompt is not None and options.guidance_scale <= 1:
        _report([f"--negative_prompt: has no effect at --guidance_scale {options.guidance_scale:g}"])
    _report(existing.check_recipe(storage, recipe))
    captures = options.captures()
    there = existing.find(storage, options.model_type, slots, captures, options.img_per_prompt)
    todo = plan.make(slots, there, captures)
    print(describe(todo, len(queries)), flush=True)
    if not todo.images_to_draw:
        print(f"nothing to draw: all {todo.images_wanted:,} images are there")
    if options.dry_run or not todo.images_to_draw:
        return OK

    storage.check_writable(create=True)
    record = runs.begin(options.model_type, dataclasses.asdict(recipe), dataclasses.asdict(options))
    record = runs.write(storage, record)
    counts: collections.Counter[str] = collections.Counter()
    outcome: dict[str, Any] = {"state": "failed"}
    try:
        with cluster.connected(options.address):
            interrupts.install()  # Ray takes SIGTERM for itself
            index = IndexWriter(storage, options.model_type, _constants(recipe))
            _remove_caches(storage, todo, options.model_type)
            counts = driver.run(todo, recipe, options, storage, index, interrupts)
        outcome = {"state": "some failed" if counts["failed"] else "complete"}
    except KeyboardInterrupt:
        outcome = {"state": "interrupted"}
        raise
    except Exception as error:
        outcome["error"] = str(error)
        raise
    finally:
        _remove_caches(storage, todo, options.model_type)
        seconds = time.monotonic() - started
        summary = {
            "queries": len(queries),
            "queries_skipped": len(annotations.skipped),
            "slots": todo.slots,
            "denoises": todo.denoises.num_rows,
            "duplicates_saved": todo.duplicates_saved,
            "images_written": counts["ok"],
            "images_skipped": todo.images_there,
            "images_failed": counts["failed"],
            "images_truncated": counts["truncated"],
            "steps_run": todo.steps_to_run(),
            "wall_seconds": round(seconds, 1),
            "images_per_second": round(counts["ok"] / seconds, 2),
        }
        runs.write(storage, record, **outcome, summary=summary)
        storage.remove_staging()
    print(_summary(summary, storage), flush=True)
    return SOME_FAILED if counts["failed"] else OK


def describe(todo: plan.Plan, queries: int) -> str:
    """The plan in five lines."""
    steps, images = todo.steps_to_run(), todo.images_wanted
    separate = todo.slots * sum(capture.step for capture in todo.captures if capture.snapshot == "xt")
    return "\n".join(
        [
            f"queries          {queries:,}",
            f"slots            {todo.slots:,}, of them {todo.different_denoises:,} different",
            f"images           {images:,} wanted, {todo.images_there:,} there, {todo.images_to_draw:,} to draw",
            f"denoises to do   {todo.denoises.num_rows:,} ({todo.duplicates_saved:,} duplicates saved)",
            f"steps to run     {steps:,}" + (f" (a run for each step count: {separate:,})" if separate else ""),
        ]
    )


def _summary(summary: dict[str, Any], storage: Storage) -> str:
    return (
        f"{summary['images_written']:,} images written, {summary['images_skipped']:,} skipped,"
        f" {summary['images_failed']:,} failed; {summary['denoises']:,} denoises,"
        f" {summary['duplicates_saved']:,} duplicates saved, {summary['steps_run']:,} steps;"
        f" {summary['wall_seconds']:g} s, {summary['images_per_second']:g} images/s;"
        f" {summary['images_truncated']:,} images of truncated prompts\n"
        f"{storage.path(layout.run_file(storage.run_id or ''))}"
    )


def _constants(recipe: Any) -> dict[str, Any]:
    """The index's columns that are the same for every row of a run."""
    names = ("num_inference_steps", "model_path", "model_revision", "guidance_scale", "scheduler", "dtype")
    constants = {name: getattr(recipe, name) for name in names}
    return constants | {"format": recipe.image_format, "recipe": recipe.fingerprint()}


def _remove_caches(storage: Storage, todo: plan.Plan, model_type: str) -> None:
    """Features that retrieval scripts cached of a folder are stale once an image of it is drawn again."""
    for number, capture in enumerate(todo.captures):
        if todo.draws(number):
            storage.remove_feature_caches(layout.step_folder(model_type, capture.snapshot, capture.step))


def _report(lines: list[str], most: int = 20) -> None:
    for line in lines[:most]:
        print(f"proxyqueue: {line}", file=sys.stderr)
    if len(lines) > most:
        print(f"proxyqueue: and {len(lines) - most:,} more like these", file=sys.stderr)
