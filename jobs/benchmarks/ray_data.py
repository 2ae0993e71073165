"""A script on Ray Data, as one writes it by hand: `map_batches` over actors that hold the pipeline, a callback, files.
Knows Ray Data's public functions; it has no index, resumes nothing and survives no failure."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors import pipelines
from actors.recipe import Recipe
from jobs.benchmarks.variants import Slot
from ray_app.cluster import ray_workarounds


class PipelineActor:
    """Holds the pipeline; decodes a whole batch in the callback of each requested step, and saves its images.

    Args:
        folder: images go to `folder/step{N}/{slot}.{format}`.
    """

    def __init__(self, recipe: Recipe, steps: Sequence[int], folder: Path, threads: int | None):
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.recipe, self.steps, self.folder = recipe, steps, folder
        self.model = pipelines.load(recipe)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch's slots, each with the moments at which its batch began and ended, in seconds of `time.time`."""
        began = time.time()
        numbers = batch["number"].tolist()

        def save(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index + 1 in self.steps:
                self._save(numbers, index + 1, tensors["latents"])
                pipe._interrupt = index + 1 == max(self.steps)
            return tensors

        embeddings = [self.model.encode(prompt) for prompt in batch["prompt"].tolist()]
        pipelines.denoise(self.model, embeddings, batch["seed"].tolist(), self.recipe.num_inference_steps, save)
        return {
            "number": batch["number"],
            "began": np.full(len(numbers), began),
            "ended": np.full(len(numbers), time.time()),
        }

    def _save(self, numbers: Sequence[int], step: int, latents: Any) -> None:
        images = self.model.pipe.image_processor.postprocess(self.model.decode(latents), output_type="pil")
        options = {} if self.recipe.image_quality is None else {"quality": self.recipe.image_quality}
        for number, image in zip(numbers, images, strict=True):
            image.save(self.folder / f"step{step}" / f"{number}.{self.recipe.image_format}", **options)


def generate(
    recipe: Recipe, slots: Sequence[Slot], steps: Sequence[int], folder: Path, actors: int, threads: int | None
) -> float:
    """Seconds from the first actor's first batch until the last image is saved. Ray must be connected."""
    data = ray_workarounds.import_data()
    ray_workarounds.quiet_data()
    for step in steps:
        (folder / f"step{step}").mkdir(parents=True, exist_ok=True)
    reserved = {"num_gpus": 1, "num_cpus": 0} if recipe.device == "cuda" else {"num_cpus": 1}
    done = (
        data.from_items([{"number": number, "prompt": prompt, "seed": seed} for number, prompt, seed in slots])
        .map_batches(
            PipelineActor,
            fn_constructor_args=(recipe, list(steps), folder, threads),
            batch_size=recipe.batch_size,
            compute=data.ActorPoolStrategy(size=actors),
            **reserved,
        )
        .take_all()
    )
    return max(row["ended"] for row in done) - min(row["began"] for row in done)
