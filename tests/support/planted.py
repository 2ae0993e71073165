"""Outputs with features in which it is known what each step's proxies find: targets are planted, no model is run.

Each query has a target image in the gallery. A prompt's vector points partly to it; an image's the more, the more of
its step's share; all else is noise.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_app.features.parts import schema
from ray_app.index.writer import IndexWriter
from ray_app.output import layout
from ray_app.output.open import open_output
from tests.support.outputs import RECIPE

WIDTH = 32
ENCODER = "planted"
STEPS = {1: 0.2, 4: 1.0, 32: 1.0}
"""Each step, and how much of its images' vectors is the target's."""
PROMPTS = 2
FIRST_ID = 100_000
"""Of the gallery, whose ids are consecutive."""


def feature_table(rows: Sequence[Mapping[str, Any]], width: int = WIDTH) -> pa.Table:
    """The columns of a part, null where a row has no such value."""
    defaults = {"encoder": ENCODER, "revision": "r1", "preprocessing": "none", "status": "ok"}
    return pa.Table.from_pylist([{**defaults, **row} for row in rows], schema(width))


def write_features(
    output: Path, rows: Sequence[Mapping[str, Any]], part: str = "a", encoder: str = ENCODER, width: int = WIDTH
) -> Path:
    """A part of features; its file."""
    folder = output / layout.features_folder(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(feature_table(rows, width), folder / f"part-{part}.parquet")
    return folder / f"part-{part}.parquet"


def image_bytes(name: str) -> bytes:
    """A png whose colour is a function of the name."""
    colour = tuple(hashlib.sha256(name.encode()).digest()[:3])
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), colour).save(buffer, "PNG")
    return buffer.getvalue()


def plant(
    folder: Path,
    queries: int = 12,
    gallery: int = 200,
    steps: Mapping[int, float] = STEPS,
    image_indices: int = 1,
    truth: bool = True,
    text_share: float = 0.3,
    snapshots: Sequence[str] = ("xt",),
    proxies: Callable[[int, np.ndarray], np.ndarray] = lambda query, target: target,
) -> Path:
    """Write `out` (images, index, features) and `val.json` into a folder; the output's path.

    Args:
        proxies: the direction that a query's images take, from its number and its target's vector.
    """
    chance = np.random.default_rng(7)
    output = folder / "out"
    vectors = chance.standard_normal((gallery, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [FIRST_ID + number for number in range(gallery)]
    rows = [
        {"sha256": f"photo{i}", "name": f"{i:012d}", "vector": 3 * vector}
        for i, vector in zip(ids, vectors, strict=True)
    ]
    entries = []

    def near(target: np.ndarray, share: float) -> np.ndarray:
        noise = chance.standard_normal(WIDTH) / np.sqrt(WIDTH)
        return (share * target + noise).astype(np.float32)

    index_rows = []
    files = open_output(str(output)).writer("run-1")
    for query in range(queries):
        target = vectors[query]
        prompts = [f"prompt {query} {number}" for number in range(PROMPTS)]
        captions = [f"caption {query} {number}" for number in range(PROMPTS)]
        entry: dict[str, Any] = {
            "id": query,
            "reference_img_id": ids[query + queries],
            "relative_caption": f"change {query}",
        }
        entry |= {"multi_gpt-3.5_opt": prompts, "multi_caption_opt": captions}
        if truth:
            entry |= {"target_img_id": ids[query], "gt_img_ids": [ids[query], ids[query + 2 * queries]]}
            entry["semantic_aspects"] = ["cardinality"] if query % 2 else ["addition", "viewpoint"]
        entries.append(entry)
        rows += [{"text": prompt, "vector": near(target, text_share)} for prompt in prompts]
        rows += [{"text": caption, "vector": near(vectors[query + queries], 0.5)} for caption in captions]
        for prompt_index in range(PROMPTS):
            for image_index in range(image_indices):
                for snapshot, (step, share) in itertools.product(snapshots, steps.items()):
                    k = prompt_index * image_indices + image_index
                    file = layout.image_file(layout.COMBINED, str(entry["reference_img_id"]), k, "png")
                    path = f"{layout.step_folder('sdxl', snapshot, step)}/{file}"
                    data = image_bytes(f"{query} {prompt_index} {image_index} {snapshot} {step}")
                    files.write(path, data)
                    sha256 = hashlib.sha256(data).hexdigest()
                    name = file.rsplit("/", 1)[-1].removesuffix(".png")
                    rows.append({"sha256": sha256, "name": name, "vector": near(proxies(query, target), share)})
                    row = {"query_id": query, "reference_img_id": str(entry["reference_img_id"]), "snapshot": snapshot}
                    row |= {
                        "prompt_index": prompt_index,
                        "image_index": image_index,
                        "k": k,
                        "step": step,
                        "path": path,
                    }
                    index_rows.append({**row, "status": "ok", "bytes": len(data), "sha256": sha256})
    with IndexWriter(files, RECIPE) as writer:
        writer.append(pa.Table.from_pylist(index_rows))
    files.output.remove_staging(files.run_id)
    (folder / "val.json").write_text(json.dumps(entries))
    write_features(output, rows)
    return output


def write_photos(folder: Path, gallery: int = 200) -> Path:
    """A photo of each image of the gallery, named as COCO names them."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(FIRST_ID, FIRST_ID + gallery):
        (photos / f"{number:012d}.png").write_bytes(image_bytes(str(number)))
    return photos
