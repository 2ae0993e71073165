"""ImageWorker: batches of prompts through the image generator, one row per image.
Knows the generator's columns and the plan's; nothing of files. torch is imported with the first worker."""

import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa

from actors import peaks
from actors.errors import DeviceLost, ModelError, ModelNeedsMemory
from actors.recipe import Capture, Recipe
from ray_app import machine
from ray_app.index.schema import GENERATOR, PLAN, SLOT, WORKER, names_from
from ray_app.index.schema import SCHEMA as INDEX
from ray_app.messages import LOG
from ray_app.work_queue.worker import Worker

_SLOT_STRUCT = pa.struct([*map(INDEX.field, names_from(SLOT)), ("file", pa.string())])
SCHEMA = pa.schema(
    [
        *map(INDEX.field, names_from(PLAN, GENERATOR, WORKER)),
        ("encode_seconds", pa.float32()),
        ("idle_seconds", pa.float32()),
        ("hardware", pa.string()),
        ("image", pa.binary()),
        ("slots", pa.list_(_SLOT_STRUCT)),
    ]
)
"""Rows that leave a worker, one per image: its columns of the index, its bytes, and the slots that request it."""


class ImageWorker(Worker):
    """Loads a recipe's model once, and generates the images of batches of `Plan.denoises`."""

    ITEM = "denoise_id"
    LOADED_ELSEWHERE: ClassVar = (ModelNeedsMemory,)  # memory may be free a moment later, or on another node
    CARD_FAILED: ClassVar = (DeviceLost,)

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        """The image generator."""
        from actors.generator import ImageGenerator

        generator = ImageGenerator(recipe, captures, threads, memory_share=self._share_of_gpu())
        generator.on_notice = self._tell
        if generator.peak is not None:
            peaks.keep(recipe, generator.peak)
        self.prepares = recipe.device == "cuda"  # on CPUs there is no second core for it
        return generator

    @functools.cached_property
    def _driver(self) -> str:
        """The version of the GPU's driver, "" where nvidia-smi tells none."""
        return next((version for (version,) in machine.query_gpus("driver_version")), "")

    def _describe_hardware(self) -> str:
        """What generates the images, as canonical JSON: workers on equal hardware give equal texts."""
        return json.dumps({**self.loaded.hardware, "driver": self._driver}, sort_keys=True)

    def _share_of_gpu(self) -> float:
        """The share that this actor has reserved of a GPU, above 0 and at most 1."""
        import ray

        return min(1.0, ray.get_runtime_context().get_assigned_resources().get("GPU") or 1.0)

    def _tell(self, line: str) -> None:
        LOG.warning(f"worker {str(self.actor_id)[:8]} {line}")

    def explain(self, error: Exception, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Exception:
        """A ModelError, also for errors that are not the model's, such as a broken installation."""
        if isinstance(error, ModelError):
            return error
        if isinstance(error, DeviceLost):
            return ModelError(f"{recipe.model_path}: the device can't be used: {error}")
        return ModelError(f"{recipe.model_path}: can't be loaded: {type(error).__name__}: {error}")

    def prepare(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The batch, with its prompts encoded on a GPU while the last batch is generated."""
        if self.prepares:
            self.loaded.prefetch(batch["prompt"])
        return batch

    def process(self, batch: dict[str, list[Any]]) -> list[Any]:
        """The generator's images of each prompt, not encoded yet; a batch is padded to the fixed size."""
        return self.loaded.generate(batch)

    def give_up(self, item: dict[str, list[Any]], error_type: str, message: str) -> list[Any]:
        """Failed images of one prompt."""
        return self.loaded.give_up(item, error_type, message)

    def finish(self, batch: dict[str, list[Any]], results: list[Any], idle_seconds: float) -> pa.Table:
        """Rows of `SCHEMA`: each image with the plan's columns of its prompt, and with the slots that request it."""
        images = self.loaded.encode(results)
        capture_of_image = itertools.chain.from_iterable(batch["captures"])  # the generator keeps their order
        hardware = self._describe_hardware()
        rows = []
        for number, (place, capture) in enumerate(zip(images["row"], capture_of_image, strict=True)):
            row = {name: column[number] for name, column in images.items()}
            row |= {name: batch[name][place] for name in names_from(PLAN)}
            row |= {"actor_id": self.actor_id, "node_id": self.node_id}
            row["idle_seconds"] = idle_seconds if number == 0 else 0.0  # of the batch: counted once
            row["hardware"] = hardware
            row["slots"] = [slot for slot in batch["slots"][place] if capture in slot["captures"]]
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=SCHEMA)
