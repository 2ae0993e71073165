"""The index's columns: one pinned Parquet schema, one row an image.
Knows types and meanings; nothing of parts or of how images are drawn."""

import json
from typing import Any

import pyarrow as pa

VERSION = "1"
VERSION_KEY = b"proxyqueue.schema_version"
RECIPES_KEY = b"proxyqueue.recipes"
"""Keys of a part's metadata."""

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

KEY = ("query_id", "prompt_index", "image_index", "snapshot", "step")
"""What tells one image of a model from another; the newest row of a key counts."""

SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMNS.items()], {VERSION_KEY: VERSION})


REQUIRED = (*KEY, "created_at", "status", "path")
"""What a part can't be read without; of other columns that an older one lacks, its rows have null."""


def with_recipes(recipes: dict[str, dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Schema:
    """The schema of a part whose rows were drawn by these recipes, by fingerprint."""
    return schema.with_metadata({**(SCHEMA.metadata or {}), RECIPES_KEY: json.dumps(recipes)})
