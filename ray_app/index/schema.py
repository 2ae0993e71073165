"""The index's columns: one pinned Parquet schema, one row per image.
Knows types and meanings; nothing of parts or of how images are drawn."""

import json
from typing import Any, NamedTuple

import pyarrow as pa

VERSION = "1"
VERSION_KEY = b"proxyqueue.schema_version"
RECIPES_KEY = b"proxyqueue.recipes"
"""Keys of a part's metadata."""

SLOT, PLAN, GENERATOR, WORKER, WRITER, RUN = "slot", "plan", "generator", "worker", "writer", "run"
"""Where a column's values come from, in the order of the data's way."""


class Column(NamedTuple):
    """One column of the index."""

    type: pa.DataType
    meaning: str
    source: str


COLUMNS: dict[str, Column] = {
    "query_id": Column(pa.int64(), "id of the query in the annotations", SLOT),
    "reference_img_id": Column(pa.string(), "its reference photo", SLOT),
    "prompt_index": Column(pa.int16(), "place of the prompt in the query's list, from 0", SLOT),
    "image_index": Column(pa.int16(), "which image of that prompt, from 0", SLOT),
    "k": Column(pa.int32(), "number in the file's name: prompt_index * img_per_prompt + image_index", SLOT),
    "snapshot": Column(pa.string(), "xt: the latents as they are; x0: the predicted clean image", GENERATOR),
    "step": Column(pa.int16(), "denoising step, from 1", GENERATOR),
    "num_inference_steps": Column(pa.int16(), "total denoising steps", GENERATOR),
    "path": Column(pa.string(), "the image, relative to OUTPUT", WRITER),
    "format": Column(pa.string(), "jpg, png or webp", RUN),
    "width": Column(pa.int32(), "pixels", GENERATOR),
    "height": Column(pa.int32(), "pixels", GENERATOR),
    "bytes": Column(pa.int64(), "size of the file; null if failed", WRITER),
    "sha256": Column(pa.string(), "of the file, hex; null if failed", WRITER),
    "status": Column(pa.string(), "ok: the file is there, whole; failed: it could not be drawn", GENERATOR),
    "error_type": Column(pa.string(), "why it failed", GENERATOR),
    "error_message": Column(pa.string(), "in words", GENERATOR),
    "prompt": Column(pa.string(), "what was drawn", PLAN),
    "prompt_truncated": Column(pa.bool_(), "the encoder saw less than the whole prompt", GENERATOR),
    "seed": Column(pa.int64(), "of the noise", PLAN),
    "denoise_id": Column(pa.string(), "equal for images that come from the same denoise: same prompt, same seed", PLAN),
    "recipe": Column(pa.string(), "fingerprint of everything else that decides a pixel; in full in runs/", RUN),
    "model_path": Column(pa.string(), "hub id, folder, or tiny", RUN),
    "model_revision": Column(pa.string(), "commit of the hub, or a hash of the folder", RUN),
    "guidance_scale": Column(pa.float32(), "classifier-free guidance", RUN),
    "scheduler": Column(pa.string(), "diffusers class", RUN),
    "dtype": Column(pa.string(), "of the denoiser's weights", RUN),
    "timestep": Column(pa.float32(), "the scheduler's timestep of the step", GENERATOR),
    "sigma": Column(pa.float32(), "noise left in xt after the step; 0 at the last", GENERATOR),
    "batch_size": Column(pa.int16(), "prompts denoised together", GENERATOR),
    "denoise_seconds": Column(pa.float32(), "from the batch's start to the step, divided by its prompts", GENERATOR),
    "decode_seconds": Column(pa.float32(), "of the VAE, divided by the batch's images", GENERATOR),
    "actor_id": Column(pa.string(), "the Ray actor that drew it", WORKER),
    "node_id": Column(pa.string(), "and its node", WORKER),
    "run_id": Column(pa.string(), "the run that drew it: runs/{run_id}.json", RUN),
    "created_at": Column(pa.timestamp("us", tz="UTC"), "when the row reached the index", RUN),
}
"""Every column but `model`, which is the hive partition."""


def names_from(*sources: str) -> tuple[str, ...]:
    """The columns whose values come from there."""
    return tuple(name for name, column in COLUMNS.items() if column.source in sources)


SLOT_KEY = ("query_id", "prompt_index", "image_index")
"""What tells one slot from another."""
KEY = (*SLOT_KEY, "snapshot", "step")
"""What tells one image of a model from another; the newest row of a key counts."""

SCHEMA = pa.schema([pa.field(name, column.type) for name, column in COLUMNS.items()], {VERSION_KEY: VERSION})


REQUIRED = (*KEY, "created_at", "status", "path")
"""What a part can't be read without; of other columns that an older one lacks, its rows have null."""


def with_recipes(recipes: dict[str, dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Schema:
    """The schema of a part whose rows were drawn by these recipes, by fingerprint."""
    return schema.with_metadata({**(SCHEMA.metadata or {}), RECIPES_KEY: json.dumps(recipes)})
