"""The writer stage: encoded images in, index rows without bytes out.
Writes the same bytes to the same names however often a batch is replayed; knows no Ray."""

import functools
import hashlib
import time
from typing import Any

import pyarrow as pa

from ray_app import layout
from ray_app.errors import one_line
from ray_app.metrics import MEASURED
from ray_app.schema import COLUMNS, SCHEMA
from ray_app.storage import Storage

UNWRITTEN = "unwritten"
"""Status of a row whose image is drawn but could not be written: the output's trouble, not the prompt's."""

_FROM_SLOT = ("query_id", "reference_img_id", "prompt_index", "image_index", "k")
_FROM_WRITER = ("path", "bytes", "sha256")


def write_images(table: pa.Table, storage: Storage, model_type: str) -> pa.Table:
    """Write a batch's images for every slot that asks for them.

    Args:
        table: rows of `worker.Worker`.

    Returns:
        One row of the index an image, without the columns that are the same for the whole run, but with the
        seconds that are only for the metrics.
    """
    from_image = [name for name in table.column_names if name in COLUMNS]
    rows: list[dict[str, Any]] = []
    to_write: list[tuple[dict[str, Any], bytes]] = []
    for image in table.to_pylist():
        idle_seconds = image["idle_seconds"]
        digest = hashlib.sha256(image["image"]).hexdigest() if image["image"] is not None else None
        for slot in image["slots"]:
            folder = layout.step_folder(model_type, image["snapshot"], image["step"])
            row = {name: slot[name] for name in _FROM_SLOT} | {name: image[name] for name in from_image}
            row |= {"path": f"{folder}/{slot['file']}", "bytes": None, "sha256": None}
            if digest is not None:
                row |= {"bytes": len(image["image"]), "sha256": digest}
                to_write.append((row, image["image"]))
            row |= {"encode_seconds": image["encode_seconds"], "idle_seconds": idle_seconds}
            idle_seconds = 0.0  # an actor's, not each slot's
            rows.append(row)
    storage.for_each(functools.partial(_write, storage), to_write)
    measured = [pa.field(name, pa.float32()) for name in MEASURED]
    schema = pa.schema([*map(SCHEMA.field, (*_FROM_SLOT, *from_image, *_FROM_WRITER)), *measured])
    return pa.Table.from_pylist(rows, schema=schema)


def _write(storage: Storage, image: tuple[dict[str, Any], bytes]) -> None:
    """Write an image; how long it took, or why it can't be written, is said in its row."""
    row, data = image
    started = time.perf_counter()
    try:
        storage.write(row["path"], data)
        row["write_seconds"] = time.perf_counter() - started
    except OSError as error:
        why = error.strerror or one_line(error)
        row |= {"status": UNWRITTEN, "error_type": type(error).__name__, "error_message": why}
