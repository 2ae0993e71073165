"""Worker: what a Ray actor of the pool runs. Arrow tables in and out of the image generator, reported to the ledger.
Knows which actor and node it is on; nothing of files. torch and Ray are imported with the first worker."""

import itertools
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from actors.errors import ModelError, ModelNeedsMemory
from actors.recipe import Capture, Recipe
from ray_app import messages
from ray_app.index.schema import GENERATOR, PLAN, SLOT, WORKER, names_from
from ray_app.index.schema import SCHEMA as INDEX

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
"""Rows that leave a worker, one per image: its columns of the index, its bytes, and the slots that request it."""


class Worker:
    """One actor of the pool; loads the model once and generates batches until the run ends.

    Ray replays a batch that a worker died with: then its prompts run one by one, each padded to the full batch, and a
    prompt that kills its worker again is given up.

    It may be called by two threads: while one encodes its batch's files, the other generates the next batch.
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
        except Exception as error:  # such as a broken installation
            self._load_error = ModelError(f"{recipe.model_path}: can't be loaded: {type(error).__name__}: {error}")
        else:
            self._tell("loaded", self.ids["actor_id"])
        self._idle_since = time.monotonic()

    def load(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None) -> Any:
        """The image generator."""
        from actors.generator import ImageGenerator

        return ImageGenerator(recipe, captures, threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `Plan.denoises` in, one row per image out; always the same rows in the same order."""
        if self._load_error is not None:
            raise self._load_error  # ends the run at once; raised in __init__, it would make Ray start more workers
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
        """Rows of `SCHEMA`: each image with the plan's columns of its prompt, and with the slots that request it.

        Args:
            batch: columns of `Plan.denoises`.
            images: columns of the generator; `row` is an image's place in the batch.
        """
        capture_of_image = itertools.chain.from_iterable(batch["captures"])  # the generator keeps their order
        rows = []
        for number, (place, capture) in enumerate(zip(images["row"], capture_of_image, strict=True)):
            row = {name: column[number] for name, column in images.items()}
            row |= {name: batch[name][place] for name in names_from(PLAN)}
            row |= self.ids
            row["idle_seconds"] = idle_seconds if number == 0 else 0.0  # of the batch: counted once
            row["slots"] = [slot for slot in batch["slots"][place] if capture in slot["captures"]]
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _one_by_one(self, number: str, batch: dict[str, list[Any]]) -> list[Any]:
        """What `generator.draw` returns for a batch that a worker died with."""
        pictures: list[Any] = []
        for place, prompt in enumerate(batch["denoise_id"]):
            one_prompt = {name: values[place : place + 1] for name, values in batch.items()}
            error = self._tell("begin_alone", number, prompt, self.ids["actor_id"])
            if error is not None:
                pictures += self.generator.give_up(one_prompt, *error)
                continue
            pictures += self.generator.draw(one_prompt)
            self._tell("end_alone", prompt)
        return pictures

    def _tell(self, what: str, *arguments: Any) -> Any:
        """Call the ledger and wait: what it has not stored when this process dies is lost."""
        import ray

        return ray.get(getattr(self.ledger, what).remote(*arguments))
