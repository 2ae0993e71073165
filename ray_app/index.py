"""The index: one pinned Parquet schema, immutable parts, one row an image.
Knows rows and parts; nothing of how images are drawn."""

import dataclasses
import datetime
import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors.recipe import Recipe
from ray_app import layout, parts
from ray_app.errors import GOES_ON, Refused, one_line
from ray_app.parts import RECIPES_KEY, VERSION_KEY
from ray_app.storage import Storage

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

SCHEMA_VERSION = "1"
COMMIT_SECONDS = 5.0
COMMIT_ROWS = 5_000
LISTINGS = 6
"""How often a reader lists the parts before it gives up: they go one by one while an index is compacted."""

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

TICK = datetime.timedelta(microseconds=1)
"""The least by which times of the index differ."""

KEY = ("query_id", "prompt_index", "image_index", "snapshot", "step")
"""What tells one image of a model from another; the newest row of a key counts."""

SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMNS.items()], {VERSION_KEY: SCHEMA_VERSION})


def with_recipes(recipes: dict[str, dict[str, Any]]) -> pa.Schema:
    """The schema of a part whose rows were drawn by these recipes, by fingerprint."""
    return SCHEMA.with_metadata({**(SCHEMA.metadata or {}), RECIPES_KEY: json.dumps(recipes)})


def to_parquet(table: pa.Table) -> bytes:
    """A part's bytes. Pages carry checksums: a flipped bit is found, where zstd alone would give other values."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue().to_pybytes()


class IndexWriter:
    """Collects the rows of a run and commits them as parts, each whole or not at all.

    As a context manager it commits on every way out. An error that is on its way out already is the one to tell: a
    last part that can't be written then doesn't hide it, and its images are drawn again by the same command.

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
        self._newest: datetime.datetime | None = None

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.commit()
        except Refused:
            if error is None:
                raise

    def append(self, rows: pa.Table) -> None:
        """Take rows into the next part. Columns that are neither here nor constant are null."""
        if not rows.num_rows:
            return
        # a later row counts, whatever the clock says: it may have been set back, or be behind another host's
        newest = self._newest or newest_time(self.storage, self.model_type)
        now = self._newest = max(datetime.datetime.now(datetime.UTC), newest + TICK)
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
        """Write what is waiting as one part; nothing if nothing waits.

        Raises:
            Refused: it can't be written; the rows stay in hand for another try.
        """
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        part = layout.index_part(self.model_type, self.run_id, self._sequence)
        try:
            self.storage.write(part, to_parquet(table))
        except OSError as error:
            raise Refused(f"{error.filename}: {error.strerror}; {GOES_ON}") from error
        self._sequence += 1
        self._tables, self._rows = [], 0


def relisted(read: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A reader that begins anew with a fresh listing if a part is gone that it had listed.

    That is compaction: the part's rows stand in another by then.
    """

    @functools.wraps(read)
    def reader(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        for listing in range(1, LISTINGS):
            try:
                return read(*arguments, **named)
            except FileNotFoundError:
                time.sleep(0.05 * 2**listing)
        return read(*arguments, **named)

    return reader


def part_names(storage: Storage, model_type: str) -> list[str]:
    """The parts of a model's partition, by path under OUTPUT.

    Listed until two listings agree: a single one of a big folder can miss a part that comes meanwhile, and just as well
    the old ones that go because of it.
    """
    names: list[str] | None = None
    for _ in range(LISTINGS**2):
        before, names = names, storage.list_names(layout.index_folder(model_type), "*.parquet")
        if names == before:
            break
    return names or []


@relisted
def read(
    storage: Storage,
    model_type: str,
    columns: Sequence[str] | dict[str, ds.Expression],
    only: ds.Expression | None = None,
) -> pa.Table:
    """Rows of a model's partition, oldest first, so that the last of a key is the one that counts.

    Rows of damaged parts are left out, and each such part is named on stderr, once a process.

    Raises:
        Refused: a part that can't be opened, though it may be whole; the message names it.
    """
    wanted = columns if isinstance(columns, dict) else {name: ds.field(name) for name in columns}
    wanted = {**wanted, "created_at": ds.field("created_at")}
    while True:
        names = list(_parts(storage, model_type))
        try:
            return dataset(storage, names).to_table(columns=wanted, filter=only).sort_by("created_at")
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            if not parts.find_damaged_data(storage, names):
                where = storage.at(layout.index_folder(model_type))
                raise Refused(f"{where}: can't be read: {one_line(error, 200)}") from error


def newest_time(storage: Storage, model_type: str) -> datetime.datetime:
    """When the newest row of a model's partition was made; long ago if there is none."""
    found = pc.max(read(storage, model_type, ["created_at"])["created_at"]).as_py()
    return found or datetime.datetime.fromtimestamp(0, datetime.UTC)


def dataset(storage: Storage, names: Sequence[str]) -> ds.Dataset:
    """The rows of these parts, read when they are asked for, each page compared with its checksum."""
    return ds.dataset([storage.path(name) for name in names], SCHEMA, _CHECKED, storage.filesystem)


def newest(rows: pa.Table) -> np.ndarray:
    """Where in a table the newest row of each key stands, in the order of the keys; of equally old ones the last.

    Args:
        rows: has the columns of `KEY`, and `created_at`.
    """
    keys = [
        np.asarray(pc.rank(rows[name], tiebreaker="dense") if name == "snapshot" else rows[name].fill_null(-1))
        for name in KEY
    ]
    order = np.lexsort((np.asarray(rows["created_at"].cast(pa.int64())), *reversed(keys)))
    last = np.ones(len(order), bool)
    if len(order):
        last[:-1] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    return order[last]


@relisted
def recipes(storage: Storage, model_type: str) -> dict[str, dict[str, Any]]:
    """Every recipe of a model's partition in full, by fingerprint, from the parts' own metadata."""
    found: dict[str, dict[str, Any]] = {}
    for of_part in _parts(storage, model_type).values():
        found |= of_part
    return found


def set_aside_damaged(storage: Storage, model_type: str) -> None:
    """Move the parts that reading found damaged to OUTPUT/.set_aside, so that no pattern of `index/` finds them."""
    for part in parts.damaged(storage, layout.index_folder(model_type)):
        storage.set_aside(part)


_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def _parts(storage: Storage, model_type: str) -> dict[str, dict[str, Any]]:
    return parts.readable(storage, part_names(storage, model_type), SCHEMA)
