"""Worker: what a Ray actor of the pool runs, the image generator between Arrow tables, with its ledger kept.
Knows which actor and node it is on; nothing of files. torch and Ray come in with the first worker."""

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.errors import ModelError, ModelNeedsMemory
from actors.recipe import Capture, Recipe
from ray_app import schema
from ray_app.plan import SLOT_FIELDS

_SLOTS = pa.list_(
    pa.struct([*((name, schema.COLUMNS[name][0]) for name in SLOT_FIELDS if name != "file"), ("file", pa.string())])
)
_IMAGE_COLUMNS = (
    "denoise_id", "prompt", "seed", "snapshot", "step", "num_inference_steps", "width", "height", "status",
    "error_type", "error_message", "prompt_truncated", "timestep", "sigma", "batch_size", "denoise_seconds",
    "decode_seconds", "actor_id", "node_id",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        *(schema.SCHEMA.field(name) for name in _IMAGE_COLUMNS),
        pa.field("encode_seconds", pa.float32()),
        pa.field("idle_seconds", pa.float32()),
        pa.field("image", pa.binary()),
        pa.field("slots", _SLOTS),
    ]
)


class Worker:
    """One actor of the pool; loads the model once and draws batches until the run ends.

    A batch that a worker died with comes here again: then its prompts are drawn one by one, each padded to the full
    batch, and one that kills again is given up.

    It may be called by two threads: while one encodes its batch's files, the other draws the next batch.
    """

    def __init__(self, ledger: Any, recipe: Recipe, captures: Sequence[Capture], threads: int | None):
        import ray

        context = ray.get_runtime_context()
        self.ids = {"actor_id": context.get_actor_id(), "node_id": context.get_node_id()}
        self.ledger = ledger
        self._turn = threading.Lock()
        self._load_error: ModelError | None = None
        self._tell("loading", self.ids["actor_id"], self.ids["node_id"], os.getpid())
        try:
            self.generator = self.load(recipe, captures, threads)
        except ModelNeedsMemory:
            raise  # Ray starts another worker: memory may be free by then, or on another node
        except ModelError as error:
            self._load_error = error
        except Exception as error:  # a broken installation, say
            self._load_error = ModelError(f"{recipe.model_path}: can't be loaded: {type(error).__name__}: {error}")
        else:
            self._tell("loaded", self.ids["actor_id"])
        self._idle_since = time.monotonic()

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        """The image generator."""
        from actors.generator import ImageGenerator

        return ImageGenerator(recipe, captures, threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `Plan.denoises` in; one row an image out, always the same number in the same order."""
        if self._load_error is not None:
            raise self._load_error  # ends the run at once, where one raised while loading has Ray start more workers
        batch = table.to_pydict()
        number = batch["denoise_id"][0]
        with self._turn:
            idle_seconds = time.monotonic() - self._idle_since
            first_time = self._tell("begin", number, self.ids["actor_id"])
            pictures = self.generator.draw(batch) if first_time else self._one_by_one(number, batch)
            self._idle_since = time.monotonic()
        drawn = self.generator.encode(pictures)
        self._tell("end", number)
        rows = drawn.pop("row")
        asked = [capture for captures in batch["captures"] for capture in captures]
        drawn |= {name: [batch[name][row] for row in rows] for name in ("denoise_id", "prompt", "seed")}
        drawn |= {name: [value] * len(rows) for name, value in self.ids.items()}
        drawn["idle_seconds"] = [idle_seconds, *[0.0] * (len(rows) - 1)]
        drawn["slots"] = [
            [{name: slot[name] for name in SLOT_FIELDS} for slot in batch["slots"][row] if capture in slot["captures"]]
            for row, capture in zip(rows, asked, strict=True)
        ]
        return pa.table({field.name: pa.array(drawn[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)

    def _one_by_one(self, number: str, batch: dict[str, list[Any]]) -> list[Any]:
        pictures: list[Any] = []
        for row, prompt in enumerate(batch["denoise_id"]):
            alone = {name: values[row : row + 1] for name, values in batch.items()}
            given_up = self._tell("begin_alone", number, prompt, self.ids["actor_id"])
            pictures += self.generator.give_up(alone, *given_up) if given_up else self.generator.draw(alone)
            if not given_up:
                self._tell("end_alone", prompt)
        return pictures

    def _tell(self, what: str, *arguments: Any) -> Any:
        """Tell the ledger and wait: what it has not noted before a death is lost."""
        import ray

        return ray.get(getattr(self.ledger, what).remote(*arguments))
