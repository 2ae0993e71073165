"""`python -m jobs.benchmarks.gpu.probe`: seconds of loading, of a step and of a decode by batch, and memory beside it.
Knows one loaded pipeline; `pieces` plans by what it finds."""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from actors import memory, pipelines
from actors.families import FAMILIES
from actors.recipe import Recipe
from ray_app.arguments import Options
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.files import whole_file
from ray_app.flags import DEFAULT_MODEL_TYPE, ModelType
from ray_app.generation import memory_estimate, recipes
from ray_app.generation.options import Generate
from ray_app.machine import query_gpus

WARM_UP_STEPS, STEPS, DECODES = 3, 13, 3
GB = 1e9
CASES = {"sdxl": {512: (8, 1, 16, 32), 1024: (2, 1, 4)}, "flux": {512: (4, 1, 8), 1024: (1, 2)}}
"""Batch sizes by pixels; the default one first."""
TRY_CASES = {64: (2, 1)}


@dataclasses.dataclass(frozen=True)
class Probe(Options):
    """Measure one full-size pipeline with random weights: loading, a step, a decode, and their memory.

    Example: python -m jobs.benchmarks.gpu.probe --model_type flux

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
    try_: Annotated[bool, tyro.conf.arg(name="try")] = False
    """The tiny model on CPUs, to try this command; its figures mean nothing."""
    output: str = "gpu_probe.json"
    """File for what was measured, as JSON; written after each batch size."""


def probe(options: Probe) -> int:
    """Measure and write; the exit code."""
    device = "cpu" if options.try_ else "cuda"
    model_path = "tiny" if options.try_ else "full"
    if options.try_:
        torch.set_num_threads(1)  # two that wait for each other take long on a busy machine
    used_before = _used_gb()
    recipe = recipes.resolve(Generate(model_type=options.model_type, model_path=model_path, device=device))
    began = time.perf_counter()
    model = pipelines.load(recipe)
    _wait(device)
    report: dict[str, Any] = {
        "model_type": options.model_type,
        "load_seconds": time.perf_counter() - began,
        "weights_gb": torch.cuda.memory_allocated() / GB if device == "cuda" else None,
        "gpu_used_before_gb": used_before,
        "estimated_overhead_gb": memory_estimate.OVERHEAD / GB,
        "cases": [],
    }
    for pixels, batch_sizes in (TRY_CASES if options.try_ else CASES[options.model_type]).items():
        for batch_size in batch_sizes:
            case = _measured(model, dataclasses.replace(recipe, height=pixels, width=pixels, batch_size=batch_size))
            report["cases"].append(case)
            print(case, flush=True)
            with whole_file(Path(options.output), "--output") as staged:
                staged.write_text(json.dumps(report, indent=1) + "\n")
    return OK


def _measured(model: pipelines.Model, recipe: Recipe) -> dict[str, Any]:
    """One batch size: its figures, or why there are none, such as too little memory."""
    family = FAMILIES[recipe.model_type]
    batch = memory_estimate.Batch(recipe.batch_size, recipe.height, recipe.width)
    case: dict[str, Any] = {
        "pixels": recipe.height,
        "batch_size": recipe.batch_size,
        "estimated_batch_gb": memory_estimate.generating(family, batch, recipe.vae_dtype) / GB,
    }
    weights = 0
    if recipe.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        weights = torch.cuda.memory_allocated()
    try:
        case |= _timed(pipelines.Model(family, model.pipe, recipe))
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        return case | {"error": "out of memory"}
    if recipe.device == "cuda":
        case["batch_gb"] = (torch.cuda.max_memory_allocated() - weights) / GB
        case["fragments_gb"] = (torch.cuda.max_memory_reserved() - torch.cuda.max_memory_allocated()) / GB
        case["outside_torch_gb"] = _used_gb() - torch.cuda.memory_reserved() / GB
    return case


def _timed(model: pipelines.Model) -> dict[str, float]:
    """Milliseconds per image of a step, and of a decode to pixels on the host."""
    recipe = model.recipe
    marks: list[float] = []
    kept: list[Any] = []

    def mark(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index + 1 in (WARM_UP_STEPS, STEPS):
            _wait(recipe.device)
            marks.append(time.perf_counter())
            kept[:] = [tensors["latents"]]
        return tensors

    embeddings = [model.encode("a dog on a beach")] * recipe.batch_size
    pipelines.denoise(model, embeddings, list(range(recipe.batch_size)), STEPS, mark)
    pipelines.decode_to_uint8(model, kept[0])
    began = time.perf_counter()
    for _ in range(DECODES):
        pipelines.decode_to_uint8(model, kept[0])
    decoded = time.perf_counter()
    return {
        "step_ms": 1000 * (marks[1] - marks[0]) / (STEPS - WARM_UP_STEPS) / recipe.batch_size,
        "decode_ms": 1000 * (decoded - began) / DECODES / recipe.batch_size,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _used_gb() -> float:
    """Memory of the first GPU that is in use, by whatever process."""
    return next((float(used) * 2**20 / GB for (used,) in query_gpus("memory.used")), 0.0)


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.gpu.probe", Probe, probe))
