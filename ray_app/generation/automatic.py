"""What `--batch_size auto` and `--compile auto` come to: the output's own values, or those that GPUs and plan lead to.
Knows estimates, free memory and lengths of plans; generates nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pyarrow.compute

from actors import peaks
from actors.families import FAMILIES
from actors.recipe import Recipe
from ray_app.cluster import autoscaling, connection, gpu_probe
from ray_app.cluster.capacity import Capacity, Request
from ray_app.cluster.gpu_probe import Gpu
from ray_app.errors import ClusterRefused
from ray_app.generation import memory_estimate
from ray_app.generation.memory_estimate import Batch
from ray_app.generation.options import Generate
from ray_app.generation.plan import Plan
from ray_app.generation.recipes import default_batch_size
from ray_app.index.rows import read_recipes, read_rows
from ray_app.messages import LOG
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

USED_SHARE = 0.9
"""Of a GPU's free memory, for what the estimate does not know."""
MOST_TIMES_DEFAULT = 4
"""The largest batch, in default batches. At these sizes a GPU is busy all the time; larger ones only delay the end."""
CONTEXT = 0.5e9
"""Bytes of a GPU that a process has besides what torch reserves."""
LEAST_FACTOR = 0.5
"""The least by which a measured peak makes an estimate smaller."""


def flags(options: Generate) -> dict[str, str]:
    """The recipe's fields that are chosen automatically, by the names of their flags."""
    fields = {"batch_size": options.batch_size, "compile": options.compile}
    return {flag: "compiled" if flag == "compile" else flag for flag, value in fields.items() if value == "auto"}


def as_recorded(options: Generate, recipe: Recipe, output: Output) -> Recipe | None:
    """The recipe with what the output's newest image has in these fields; None for an output without images."""
    rows = read_rows(output, recipe.model_type, ["recipe"], only=pc.field("status") == "ok")
    if not rows.num_rows:
        return None
    recorded = read_recipes(output, recipe.model_type).get(rows["recipe"][-1].as_py(), {})
    values = {field: recorded[field] for field in flags(options).values() if field in recorded}
    return dataclasses.replace(recipe, **values)


def choose(options: Generate, recipe: Recipe, plan: Plan, connect: Callable[[], object]) -> Recipe:
    """The recipe with these fields chosen for the GPUs of the cluster.

    Args:
        connect: joins the cluster, or starts Ray.

    Raises:
        Refused: no cluster, one that can have no worker, or no GPU that tells how much memory it has free.
    """
    if recipe.device != "cuda":
        return recipe
    connect()
    nodes = connection.living_nodes()
    capacity, request = Capacity(nodes, autoscaling.find()), Request(options.gpus(), options.worker_bounds())
    capacity.choose_pool_size(request, plan.denoises.num_rows)
    if options.batch_size == "auto":
        gpus, silent = gpu_probe.try_gpus(nodes, recipe.dtype)
        if silent:
            LOG.warning(f"--batch_size auto: GPUs in use are not counted: node {', '.join(silent)}")
        recipe = dataclasses.replace(recipe, batch_size=choose_batch_size(options, recipe, gpus))
    if options.compile == "auto":
        batches = -(-plan.denoises.num_rows // recipe.batch_size)
        actors = capacity.choose_pool_size(request, batches)
        recipe = dataclasses.replace(recipe, compiled=pays_to_compile(recipe, plan, actors))
    return recipe


def choose_batch_size(options: Generate, recipe: Recipe, gpus: list[Gpu]) -> int:
    """The largest power of two that fits the GPU with the least free memory, and at most four default batches.

    Raises:
        Refused: no GPU tells how much it has free.
    """
    free = [gpu.free for gpu in gpus if gpu.error is None and gpu.free is not None]
    if not free:
        raise ClusterRefused(
            "--batch_size auto: no GPU has told how much memory it has free; give a number", flag="batch_size"
        )
    room = min(free) * min(options.gpus(), 1.0) * USED_SHARE
    most = MOST_TIMES_DEFAULT * default_batch_size(recipe.model_type, recipe.device, recipe.height, recipe.width)
    if (least := needed(recipe, 1)) > room:
        LOG.warning(
            f"--batch_size auto: about {least / 1e9:.0f} GB are needed for one image, and the smallest GPU has"
            f" {room / 1e9:.0f} GB for it"
        )
    size = 1
    while 2 * size <= most and needed(recipe, 2 * size) <= room:
        size *= 2
    return size


def needed(recipe: Recipe, images: int) -> float:
    """Bytes of a GPU for batches of this size: the estimate, corrected by the last peak of such a model here."""

    def estimate(images: int) -> tuple[float, float]:
        batch = Batch(images, recipe.height, recipe.width, recipe.guidance_scale > 1)
        weights, total, _ = memory_estimate.needed(
            recipe.model_type, recipe.model_path, "cuda", recipe.variant, batch, recipe.vae_path, recipe.vae_dtype
        )
        return weights, total

    weights, total = estimate(images)
    peak = peaks.read(recipe)
    if peak is None:
        return total
    _, total_at_peak = estimate(peak.batch_size)
    factor = (peak.bytes + CONTEXT - weights) / (total_at_peak - weights)
    return weights + max(LEAST_FACTOR, factor) * (total - weights)


def pays_to_compile(recipe: Recipe, plan: Plan, actors: int) -> bool:
    """Whether an actor's share of the plan is long enough for what compiling saves to exceed what it takes, twice."""
    share = plan.steps_to_run(recipe.mode == "separate") * recipe.height * recipe.width / 1024**2 / actors
    return share >= 2 * FAMILIES[recipe.model_type].compiling_steps


def describe(options: Generate, recipe: Recipe) -> str:
    """A line per field that was chosen."""
    values = {"batch_size": recipe.batch_size, "compile": "on" if recipe.compiled else "off"}
    return "".join(f"\n{f'--{flag}':<17}{values[flag]} (auto)" for flag in flags(options))
