"""The index: one pinned Parquet schema, immutable parts, one row an image.
Knows rows and parts; nothing of how images are drawn."""

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors.recipe import Recipe
from ray_app import layout
from ray_app.errors import Refused, one_line
from ray_app.storage import Storage

SCHEMA_VERSION = "1"
COMMIT_SECONDS = 5.0
COMMIT_ROWS = 5_000

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "query_id": (pa.int64(), "id of the query in the annotations"),
    "reference_img_id": (pa.string(), "its reference photo"),
    "prompt_index": (pa.int16(), "place of the prompt in the query's list, from 0"),
    "image_index": (pa.int16(), "which image of that prompt, from 0"),
    "k": (pa.int32(), "number in the file's name: prompt_index * img_per_prompt + image_index"),
    "snapshot": (pa.string(), "xt: the latents as they are; x0: the predicted clean image"),
    "step": (pa.int16(), "denoising step, from 1"),
    "num_inference_steps": (pa.int16(), "of so many"),
    "path": (pa.string(), "the image, relative to OUTPUT"),
    "format": (pa.string(), "jpg, png or webp"),
    "width": (pa.int32(), "pixels"),
    "height": (pa.int32(), "pixels"),
    "bytes": (pa.int64(), "size of the file; null if failed"),
    "sha256": (pa.string(), "of the file, hex; null if failed"),
    "status": (pa.string(), "ok: the file is there, whole; failed: it could not be drawn"),
    "error_type": (pa.string(), "why it failed"),
    "error_message": (pa.string(), "in words"),
    "prompt": (pa.string(), "what was drawn"),
    "prompt_truncated": (pa.bool_(), "the encoder saw less than the whole prompt"),
    "seed": (pa.int64(), "of the noise"),
    "denoise_id": (pa.string(), "equal for images that come from the same denoise: same prompt, same seed"),
    "recipe": (pa.string(), "fingerprint of everything else that decides a pixel; in full in runs/"),
    "model_path": (pa.string(), "hub id, folder, or tiny"),
    "model_revision": (pa.string(), "commit of the hub, or a hash of the folder"),
    "guidance_scale": (pa.float32(), "classifier-free guidance"),
    "scheduler": (pa.string(), "diffusers class"),
    "dtype": (pa.string(), "of the denoiser's weights"),
    "timestep": (pa.float32(), "the scheduler's timestep of the step"),
    "sigma": (pa.float32(), "noise left in xt after the step; 0 at the last"),
    "batch_size": (pa.int16(), "prompts denoised together"),
    "denoise_seconds": (pa.float32(), "from the batch's start to the step, divided by its prompts"),
    "decode_seconds": (pa.float32(), "of the VAE, divided by the batch's images"),
    "actor_id": (pa.string(), "the Ray actor that drew it"),
    "node_id": (pa.string(), "and its node"),
    "run_id": (pa.string(), "the run that drew it: runs/{run_id}.json"),
    "created_at": (pa.timestamp("us", tz="UTC"), "when the row reached the index"),
}
"""Every column but `model`, which is the hive partition: type and meaning."""

VERSION_KEY = b"proxyqueue.schema_version"
RECIPES_KEY = b"proxyqueue.recipes"
SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMNS.items()], {VERSION_KEY: SCHEMA_VERSION})


def with_recipes(recipes: dict[str, dict[str, Any]]) -> pa.Schema:
    """The schema of a part whose rows were drawn by these recipes, by fingerprint."""
    return SCHEMA.with_metadata({**(SCHEMA.metadata or {}), RECIPES_KEY: json.dumps(recipes)})


class IndexWriter:
    """Collects the rows of a run and commits them as parts, each whole or not at all.

    Args:
        storage: where; its run id names the parts.
        recipe: what the run's images are drawn by; in full in each part's metadata, so that rows can be redrawn.
    """

    def __init__(self, storage: Storage, recipe: Recipe):
        if storage.run_id is None:
            raise ValueError("a reader's storage can't write an index")
        self.storage, self.model_type, self.run_id = storage, recipe.model_type, storage.run_id
        names = ("num_inference_steps", "model_path", "model_revision", "guidance_scale", "scheduler", "dtype")
        self.constants = {name: getattr(recipe, name) for name in names} | {
            "format": recipe.image_format,
            "recipe": recipe.fingerprint(),
            "run_id": storage.run_id,
        }
        self.schema = with_recipes({recipe.fingerprint(): dataclasses.asdict(recipe)})
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._sequence = 0
        self._oldest = 0.0

    def append(self, rows: pa.Table) -> None:
        """Take rows into the next part. Columns that are neither here nor constant are null."""
        if not rows.num_rows:
            return
        now = datetime.datetime.now(datetime.UTC)
        columns = []
        for field in SCHEMA:
            if field.name in rows.column_names:
                columns.append(rows[field.name].cast(field.type))
            else:
                value = now if field.name == "created_at" else self.constants.get(field.name)
                columns.append(pa.repeat(pa.scalar(value, field.type), rows.num_rows))
        if not self._tables:
            self._oldest = time.monotonic()
        self._tables.append(pa.table(columns, schema=self.schema))
        self._rows += rows.num_rows

    def commit_if_due(self) -> None:
        """Commit a part if the oldest row waits for `COMMIT_SECONDS`, or `COMMIT_ROWS` rows wait."""
        if self._rows >= COMMIT_ROWS or (self._rows and time.monotonic() - self._oldest >= COMMIT_SECONDS):
            self.commit()

    def commit(self) -> None:
        """Write what is waiting as one part; nothing if nothing waits. Rows stay in hand if it can't be written."""
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        part = layout.index_part(self.model_type, self.run_id, self._sequence)
        self.storage.write_with(part, lambda path: pq.write_table(table, path, compression="zstd"))
        self._sequence += 1
        self._tables, self._rows = [], 0


def read(
    storage: Storage,
    model_type: str,
    columns: Sequence[str] | dict[str, ds.Expression],
    only: ds.Expression | None = None,
) -> pa.Table:
    """Rows of a model's partition, oldest first, so that the last of a key is the one that counts.

    Raises:
        Refused: a part that can't be read; the message names it.
    """
    parts = storage.list_names(layout.index_folder(model_type), "*.parquet")
    wanted = columns if isinstance(columns, dict) else {name: ds.field(name) for name in columns}
    wanted = {**wanted, "created_at": ds.field("created_at")}
    try:
        dataset = ds.dataset([str(storage.path(part)) for part in parts], schema=SCHEMA, format="parquet")
        return dataset.to_table(columns=wanted, filter=only).sort_by("created_at")
    except (pa.ArrowException, OSError) as error:
        broken = next((part for part in parts if not _readable(storage, part)), None)
        if broken is None:
            raise
        raise Refused(f"{storage.path(broken)}: not a readable part of the index: {one_line(error, 200)}") from error


def recipes(storage: Storage, model_type: str) -> dict[str, dict[str, Any]]:
    """Every recipe of a model's partition in full, by fingerprint, from the parts' own metadata."""
    found: dict[str, dict[str, Any]] = {}
    for part in storage.list_names(layout.index_folder(model_type), "*.parquet"):
        found |= json.loads((pq.read_schema(storage.path(part)).metadata or {}).get(RECIPES_KEY, b"{}"))
    return found


def _readable(storage: Storage, part: str) -> bool:
    try:
        pq.read_table(storage.path(part))
    except (pa.ArrowException, OSError):
        return False
    return True
