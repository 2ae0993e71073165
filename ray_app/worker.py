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
from ray_app import messages
from ray_app.schema import GENERATOR, PLAN, SLOT, WORKER, names_from
from ray_app.schema import SCHEMA as INDEX

_SLOT_STRUCT = pa.struct([*map(INDEX.field, names_from(SLOT)), ("file", pa.string())])
SCHEMA = pa.schema(
    [
        *map(INDEX.field, names_from(PLAN, GENERATOR, WORKER)),
        ("encode_seconds", pa.float32()),
        ("idle_seconds", pa.float32()),
        ("image", pa.binary()),
        ("slots", pa.list_(_SLOT_STRUCT)),
    ]
)
"""Rows that leave a worker, one an image: what the index wants of it, its bytes, and the slots that ask for it."""


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
        messages.send_to_driver(ledger.notice.remote)
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
        images = self.generator.encode(pictures)
        self._tell("end", number)
        return self._rows(batch, images, idle_seconds)

    def _rows(self, batch: dict[str, list[Any]], images: dict[str, list[Any]], idle_seconds: float) -> pa.Table:
        """Rows of `SCHEMA`: each image with what the plan says of its prompt, and with the slots that ask for it.

        Args:
            batch: columns of `Plan.denoises`.
            images: columns of the generator; `row` is an image's place in the batch.
        """
        asked = [capture for captures in batch["captures"] for capture in captures]  # one an image, in their order
        rows = []
        for number, (place, capture) in enumerate(zip(images["row"], asked, strict=True)):
            image = {name: column[number] for name, column in images.items()}
            image |= {name: batch[name][place] for name in names_from(PLAN)}
            image |= self.ids
            image["idle_seconds"] = idle_seconds if number == 0 else 0.0  # of the batch, counted once
            image["slots"] = [slot for slot in batch["slots"][place] if capture in slot["captures"]]
            rows.append(image)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

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
