"""`export --format trajectories`: Parquet files with one row per slot and one image column per snapshot and step.
Knows how the datasets library marks a column as images; only one group of slots is in memory."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_app.errors import OK
from ray_app.export.options import Export
from ray_app.index.trajectories import OK as IS_OK
from ray_app.index.trajectories import Capture, Trajectories, Trajectory
from ray_app.messages import summarize
from ray_app.output import layout
from ray_app.output.output import Output
from ray_app.progress import working

SLOTS_A_GROUP = 50
"""Slots that are written together; a few tens of megabytes."""
THREADS = 16

COLUMNS = {
    "model": pa.string(),
    "query_id": pa.int64(),
    "reference_img_id": pa.string(),
    "prompt_index": pa.int16(),
    "image_index": pa.int16(),
    "prompt": pa.string(),
    "seed": pa.int64(),
    "denoise_id": pa.string(),
}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})

WRITES_FOLDER = True


def export(output: Output, options: Export) -> int:
    """Write all slots in files of --shard_images rows; the exit code."""
    shown = Trajectories(output, layout.model_types(options.model_type), options.steps, options.snapshot)
    schema = _schema(shown.captures)
    slots = shown.of(shown.query_ids)
    rows = files = 0
    with working("writing the slots"), options.new_folder() as folder, ThreadPoolExecutor(THREADS) as pool:
        while first := list(itertools.islice(slots, 1)):
            shard = itertools.chain(first, itertools.islice(slots, options.shard_images - 1))
            groups = _groups(output, shown.captures, shard, pool)
            rows += _write_shard(folder / f"trajectories-{files:05d}.parquet", schema, groups)
            files += 1
    summarize(f"{options.export_path}: {rows:,} slots, {len(shown.captures)} images each, in {files:,} files")
    return OK


def column(capture: Capture) -> str:
    """The name of a capture's column: xt_step_4."""
    return f"{capture[0]}_step_{capture[1]}"


def _schema(captures: list[Capture]) -> pa.Schema:
    """The columns' types, and for the datasets library which of them are images."""
    fields = [pa.field(name, kind) for name, kind in COLUMNS.items()]
    fields += [pa.field(column(capture), IMAGE) for capture in captures]
    features: dict[str, Any] = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in COLUMNS.items()}
    features |= {column(capture): {"_type": "Image"} for capture in captures}
    return pa.schema(fields, {"huggingface": json.dumps({"info": {"features": features}})})


def _groups(
    output: Output, captures: list[Capture], shard: Iterator[Trajectory], pool: ThreadPoolExecutor
) -> Iterator[list[dict[str, Any]]]:
    while group := list(itertools.islice(shard, SLOTS_A_GROUP)):
        yield list(pool.map(lambda trajectory: _row(output, captures, trajectory), group))


def _row(output: Output, captures: list[Capture], trajectory: Trajectory) -> dict[str, Any]:
    """A slot with its images; null for those that failed or are missing."""
    row = {name: trajectory.slot[name] for name in COLUMNS if name != "model"}
    row["model"] = trajectory.model
    for capture in captures:
        image = trajectory.images.get(capture)
        row[column(capture)] = None
        if image is not None and image["status"] == IS_OK:
            row[column(capture)] = {"bytes": output.read(image["path"]), "path": image["path"]}
    return row


def _write_shard(path: Path, schema: pa.Schema, groups: Iterator[list[dict[str, Any]]]) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, compression="none") as writer:  # images are compressed already
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema))
            rows += len(group)
    return rows
