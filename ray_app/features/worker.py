"""FeatureWorker: batches of images and texts through the image encoder, and reading the images' bytes before that.
Knows the plan's columns and the encoder's; torch is imported with the first worker."""

import functools
import hashlib
import time
from typing import Any, ClassVar

import pyarrow as pa

from actors.encoders import Encoder
from actors.errors import DeviceLost, ModelError, ModelNeedsMemory
from ray_app.errors import one_line
from ray_app.features import parts, sources
from ray_app.features.plan import ITEMS
from ray_app.output.output import Output
from ray_app.work_queue.worker import Worker

READ = pa.schema([*ITEMS, ("image", pa.binary()), ("error_type", pa.string()), ("error_message", pa.string())])
"""Items with the images' bytes, or why those could not be read."""


def read_batch(table: pa.Table, places: list[Output]) -> pa.Table:
    """Read a batch's images: rows of `READ`, in the order of the batch.

    Args:
        table: rows of `plan.ITEMS`.
        places: the outputs that `place` counts.
    """
    items = table.to_pylist()
    parallel = max(places, key=lambda place: place.parallel_requests)
    read = parallel.for_each(functools.partial(_read_item, places), items)
    return pa.Table.from_pylist(read, schema=READ)


def _read_item(places: list[Output], item: dict[str, Any]) -> dict[str, Any]:
    if item["text"] is not None:
        return item
    try:
        data = sources.read_image(places, item)
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        return {**item, "error_type": type(error).__name__, "error_message": f"{item['path']}: {reason}"}
    if hashlib.sha256(data).hexdigest() != item["sha256"]:
        return {**item, "error_type": "ChangedFile", "error_message": f"{item['path']}: its bytes have changed"}
    return {**item, "image": data}


class FeatureWorker(Worker):
    """Loads an encoder once, and encodes batches of `READ`."""

    ITEM = "item"
    PREPARES = True
    LOADED_ELSEWHERE: ClassVar = (ModelNeedsMemory,)  # memory may be free a moment later, or on another node
    CARD_FAILED: ClassVar = (DeviceLost,)

    def load(self, encoder: Encoder, threads: int | None) -> Any:
        """The image encoder."""
        from actors.encoder import ImageEncoder

        self.encoder = encoder
        return ImageEncoder(encoder, threads)

    def explain(self, error: Exception, encoder: Encoder, threads: int | None) -> Exception:
        """A ModelError also for what is no model's, such as a broken installation."""
        if isinstance(error, ModelError):
            return error
        if isinstance(error, DeviceLost):
            return ModelError(f"{encoder.path}: the device can't be used: {error}")
        return ModelError(f"{encoder.path}: can't be loaded: {type(error).__name__}: {error}")

    def prepare(self, batch: dict[str, list[Any]]) -> list[Any]:
        """Images decoded, and texts as they are."""
        return self.loaded.prepare(batch["image"], batch["text"])

    def process(self, batch: list[Any]) -> list[Any]:
        """Each item's vector, and the seconds that it took, shared by the batch."""
        began = time.perf_counter()
        results = self.loaded.encode(batch)
        seconds = (time.perf_counter() - began) / len(batch)
        return [(result, seconds) for result in results]

    def give_up(self, item: dict[str, list[Any]], error_type: str, message: str) -> list[Any]:
        """A failed item."""
        return [(result, None) for result in self.loaded.give_up(1, error_type, message)]

    def finish(self, batch: dict[str, list[Any]], results: list[Any], idle_seconds: float) -> pa.Table:
        """One row per name of each item, with the columns of features that are not the same for a run."""
        rows = []
        for place, (result, seconds) in enumerate(results):
            error_type = batch["error_type"][place] or result.error_type
            row = {
                "sha256": batch["sha256"][place],
                "text": batch["text"][place],
                "vector": result.vector,
                "status": parts.OK if result.vector is not None else parts.FAILED,
                "error_type": error_type,
                "error_message": batch["error_message"][place] or result.error_message,
                "feature_seconds": seconds,
                "node_id": self.node_id,
            }
            for name in batch["names"][place]:
                rows.append({**row, "name": name, "idle_seconds": idle_seconds if not rows else 0.0})
        return pa.Table.from_pylist(rows, schema=_row_schema(self.encoder.vector_size))


def _row_schema(vector_size: int) -> pa.Schema:
    fields = [field for field in parts.schema(vector_size) if field.name not in parts.RECIPE]
    return pa.schema(
        [*fields, ("feature_seconds", pa.float32()), ("idle_seconds", pa.float32()), ("node_id", pa.string())]
    )
