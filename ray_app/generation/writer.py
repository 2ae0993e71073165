"""The writer stage: encoded images in, index rows without bytes out.
Writes the same bytes to the same names however often a batch is replayed; knows nothing of Ray."""

import functools
import hashlib
import time
from typing import Any

import pyarrow as pa

from ray_app import messages
from ray_app.errors import one_line
from ray_app.generation.metrics import MEASURED
from ray_app.index.schema import GENERATOR, PLAN, SCHEMA, SLOT, WORKER, names_from
from ray_app.index.schema import WRITER as FROM_WRITER
from ray_app.messages import Send
from ray_app.output import layout
from ray_app.output.output import Writer

UNWRITTEN = "unwritten"
"""Status of a row whose image was generated but not written: the output's error, not the prompt's."""

_FROM_SLOT = names_from(SLOT)
_FROM_IMAGE = names_from(PLAN, GENERATOR, WORKER)
WRITTEN = pa.schema(
    [
        *(SCHEMA.field(name) for name in (*_FROM_SLOT, *_FROM_IMAGE, *names_from(FROM_WRITER))),
        *(pa.field(name, pa.float32()) for name in MEASURED),
        pa.field("hardware", pa.string()),
    ]
)
"""Columns of the rows that leave the writer: the index's, except those that are constant for the run."""


def write_images(table: pa.Table, writer: Writer, model_type: str, notice: Send | None = None) -> pa.Table:
    """Write a batch's images for every slot that requests them.

    Args:
        table: rows of `worker.Worker`.
        notice: takes messages, such as of a retry, where nobody reads this process's stderr.

    Returns:
        Rows of `WRITTEN`, one per slot and image.
    """
    if notice is not None:
        messages.send_to_driver(notice)
    rows: list[dict[str, Any]] = []
    to_write: list[tuple[dict[str, Any], bytes]] = []
    for image in table.to_pylist():
        folder = layout.step_folder(model_type, image["snapshot"], image["step"])
        of_file = _describe_file(image["image"])
        idle_seconds = image["idle_seconds"]
        for slot in image["slots"]:
            row = {name: slot[name] for name in _FROM_SLOT}
            row |= {name: image[name] for name in _FROM_IMAGE}
            row |= {"path": f"{folder}/{slot['file']}", **of_file}
            row |= {"encode_seconds": image["encode_seconds"], "idle_seconds": idle_seconds}
            row["hardware"] = image["hardware"]
            idle_seconds = 0.0  # of the actor: counted once, not per slot
            rows.append(row)
            if image["image"] is not None:
                to_write.append((row, image["image"]))
    writer.output.for_each(functools.partial(_write_image, writer), to_write)
    return pa.Table.from_pylist(rows, schema=WRITTEN)


def _describe_file(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {"bytes": None, "sha256": None}
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_image(writer: Writer, image: tuple[dict[str, Any], bytes]) -> None:
    """Write an image, and note in its row how long that took or why it failed."""
    row, data = image
    started = time.perf_counter()
    try:
        writer.write(row["path"], data)
        row["write_seconds"] = time.perf_counter() - started
    except OSError as error:
        reason = error.strerror or one_line(error)
        row |= {"status": UNWRITTEN, "error_type": type(error).__name__, "error_message": reason}
