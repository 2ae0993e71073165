"""A run is prepared: options to recipe, slots and plan, with every check that needs no model.
Knows the order of these stages; each is implemented elsewhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

from actors import random_weights, tiny
from actors.recipe import Recipe
from ray_app import text_table
from ray_app.annotations import circo
from ray_app.generation import automatic, plan, recipes
from ray_app.generation.options import Generate
from ray_app.index import existing, requested
from ray_app.messages import LOG
from ray_app.output.open import open_output
from ray_app.output.output import Output


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


def prepare(options: Generate, connect: Callable[[], object] | None = None) -> Job:
    """Check everything that can be checked before a model is loaded, and plan. Writes nothing.

    Args:
        connect: joins the cluster, or starts Ray; called only if GPUs have to be looked at. None: they are not, and
            what is chosen automatically keeps its default.

    Raises:
        Refused: the first thing that is wrong.
    """
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts, options.strict)
    queries = annotations.queries(options.query_ids, options.limit, options.idx, options.gpu_num)
    slots = circo.slots(queries, options.img_per_prompt, options.seed, options.seed_mode, options.image_format)
    _warn([*annotations.skipped, *annotations.warnings])
    output = open_output(options.output_base_path)
    output.check_writable()
    recipe = recipes.resolve(options)
    recorded = automatic.as_recorded(options, recipe, output) if automatic.flags(options) else None
    recipe = recorded or recipe
    _warn(_odd_options(options))
    _warn(recipes.check_recipe(output, recipe))
    captures = options.captures()
    masks = existing.find_existing(output, options.model_type, slots, captures, options.img_per_prompt)
    todo = plan.make_plan(slots, masks.ok, captures, given_up=masks.failed if options.skip_failed else None)
    if connect and automatic.flags(options) and recorded is None and todo.images_to_generate:
        recipe = automatic.choose(options, recipe, todo, connect)
    requested_images = requested.record(slots, [(capture.snapshot, capture.step) for capture in captures])
    return Job(options, recipe, todo, output, len(queries), len(annotations.skipped), requested_images)


def _odd_options(options: Generate) -> list[str]:
    """Warnings about options that are allowed but probably not intended."""
    warnings = []
    if options.target_device() == "cpu" and options.model() not in (tiny.NAME, random_weights.MID):
        warnings.append(f"--device cpu: {options.model()} on CPUs takes minutes per image")
    if options.negative_prompt is not None and options.guidance_scale <= 1:
        warnings.append(f"--negative_prompt: has no effect at --guidance_scale {options.guidance_scale:g}")
    return warnings


def _warn(lines: list[str], most: int = 20) -> None:
    for line in text_table.first(lines, most, " like these"):
        LOG.warning(line)
