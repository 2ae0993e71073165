"""Outputs of any size without generating: annotations of many slots, an index of their rows, files of one byte.
Knows the index's columns; nothing of what is measured on it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from actors.recipe import Recipe
from jobs.benchmarks.work import PROMPTS_A_QUERY, made_up
from ray_app.annotations import circo
from ray_app.generation import recipes
from ray_app.generation.options import Generate
from ray_app.index.writer import IndexWriter
from ray_app.output import layout
from ray_app.output.output import Writer

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute


def write_annotations(file: Path, slots: int) -> None:
    """Queries of five prompts, with the duplicates of real ones."""
    prompts = made_up(slots)
    entries = [
        {"id": number, "reference_img_id": 100_000 + number, Generate.prompt_field: prompts[start : start + 5]}
        for number, start in enumerate(range(0, slots, PROMPTS_A_QUERY))
    ]
    file.write_text(json.dumps(entries))


def request_options(annotations: Path, output: Path, steps: Sequence[int], **more: Any) -> Generate:
    """The options that request them."""
    save_steps = tuple(map(str, steps))
    return Generate(
        json_file=str(annotations), output_base_path=str(output), model_path="tiny", save_steps=save_steps, **more
    )


def slots_of(options: Generate) -> pa.Table:
    """The slots of annotations."""
    queries = circo.load(options.json_file, options.prompt_field, options.num_prompts).queries()
    return circo.slots(queries, options.img_per_prompt, options.seed, options.seed_mode, options.image_format)


def fill(writer: Writer, options: Generate, slots: pa.Table, rows_a_part: int, files: bool) -> None:
    """Write the rows of these slots, and their files if requested, as if runs had generated every requested step."""
    recipe = recipes.resolve(options)
    steps = [capture.step for capture in options.captures()]
    output, parts = writer.output, IndexWriter(writer, recipe)
    slots_a_part = max(1, rows_a_part // len(steps))
    if files:
        for step in steps:
            folder = layout.step_folder(recipe.model_type, "xt", step)
            os.makedirs(output.path(f"{folder}/{layout.COMBINED}"), exist_ok=True)
    for start in range(0, slots.num_rows, slots_a_part):
        rows = _rows(slots.slice(start, slots_a_part), steps, recipe)
        if files:
            for path in rows["path"].to_pylist():
                with open(output.path(path), "wb") as file:
                    file.write(b".")
        parts.append(rows)
        parts.commit()


def _rows(slots: pa.Table, steps: Sequence[int], recipe: Recipe) -> pa.Table:
    """One row per slot and step."""
    count = slots.num_rows * len(steps)
    rows = slots.take(pa.array(np.repeat(np.arange(slots.num_rows), len(steps))))
    folders = pa.array([layout.step_folder(recipe.model_type, "xt", step) for step in steps])
    of_row = pa.array(np.tile(np.arange(len(steps)), slots.num_rows))
    chance = np.random.default_rng(0)
    values: dict[str, Any] = {
        "path": pc.binary_join_element_wise(folders.take(of_row), rows["file"], "/"),
        "step": pa.array(steps, pa.int16()).take(of_row),
        "sha256": _random_hex(count),
        "denoise_seconds": pa.array(chance.random(count), pa.float32()),
        "decode_seconds": pa.array(chance.random(count), pa.float32()),
        "timestep": pa.array(np.tile(np.linspace(999, 0, len(steps)), slots.num_rows), pa.float32()),
        "sigma": pa.array(np.tile(np.linspace(14, 0, len(steps)), slots.num_rows), pa.float32()),
    }
    same = {
        "snapshot": "xt",
        "status": "ok",
        "bytes": 1,
        "width": recipe.width,
        "height": recipe.height,
        "batch_size": recipe.batch_size,
        "prompt_truncated": False,
        "actor_id": "0" * 32,
        "node_id": "0" * 56,
    }
    for name, value in same.items():
        values[name] = pa.repeat(pa.scalar(value), count)
    for name, column in values.items():
        rows = rows.append_column(name, column)
    return rows.drop_columns(["file"])


def _random_hex(count: int) -> pa.Array:
    """Strings of a SHA-256's length that don't compress, as hashes don't."""
    characters = 64
    offsets = pa.array(np.arange(0, count * characters + 1, characters), pa.int32())
    text = os.urandom(count * characters // 2).hex().encode()
    return pa.StringArray.from_buffers(count, offsets.buffers()[1], pa.py_buffer(text))
