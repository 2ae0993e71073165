"""Worker: what a Ray actor of the pool runs, the image generator between Arrow tables.
Knows which actor and node it is on; nothing of files. torch and Ray come in with the first worker."""

from collections.abc import Sequence

import pyarrow as pa

from actors.recipe import Capture, Recipe
from ray_app import index
from ray_app.plan import SLOT_FIELDS

_SLOTS = pa.list_(
    pa.struct([*((name, index.COLUMNS[name][0]) for name in SLOT_FIELDS if name != "file"), ("file", pa.string())])
)
_IMAGE_COLUMNS = (
    "denoise_id", "prompt", "seed", "snapshot", "step", "width", "height", "status", "error_type", "error_message",
    "prompt_truncated", "timestep", "sigma", "batch_size", "denoise_seconds", "decode_seconds", "actor_id", "node_id",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        *(index.SCHEMA.field(name) for name in _IMAGE_COLUMNS),
        pa.field("image", pa.binary()),
        pa.field("slots", _SLOTS),
    ]
)


class Worker:
    """One actor of the pool; loads the model once and draws batches until the run ends."""

    def __init__(self, recipe: Recipe, captures: Sequence[Capture], threads: int | None):
        import ray

        from actors.generator import ImageGenerator

        context = ray.get_runtime_context()
        self.ids = {"actor_id": context.get_actor_id(), "node_id": context.get_node_id()}
        self.generator = ImageGenerator(recipe, captures, threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `Plan.denoises` in; one row an image out, always the same number in the same order."""
        batch = table.to_pydict()
        drawn = self.generator(batch)
        rows = drawn.pop("row")
        asked = [index for captures in batch["captures"] for index in captures]
        drawn |= {name: [batch[name][row] for row in rows] for name in ("denoise_id", "prompt", "seed")}
        drawn |= {name: [value] * len(rows) for name, value in self.ids.items()}
        drawn["slots"] = [
            [{name: slot[name] for name in SLOT_FIELDS} for slot in batch["slots"][row] if capture in slot["captures"]]
            for row, capture in zip(rows, asked, strict=True)
        ]
        return pa.table({field.name: pa.array(drawn[field.name], field.type) for field in SCHEMA}, schema=SCHEMA)
