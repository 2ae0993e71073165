"""The most memory of a GPU that a model's first batch took, kept in the user's cache for estimates of other batches.
Knows files; nothing of torch."""

import contextlib
import dataclasses
import json
from pathlib import Path

from actors import user_cache
from actors.recipe import Recipe, fingerprint

DECISIVE = (
    "model_path", "model_revision", "dtype", "vae_dtype", "vae_path", "vae_revision", "height", "width", "compiled",
)  # fmt: skip
"""Fields of a recipe, besides guidance and the batch's size, that the memory depends on."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes that torch reserved at most, for batches of this size."""

    batch_size: int
    bytes: int


def read(recipe: Recipe) -> Peak | None:
    """The last peak of the recipe's model at this size in pixels, None if none is kept that can be read."""
    try:
        kept = json.loads(_file(recipe).read_text())
        return Peak(int(kept["batch_size"]), int(kept["bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(recipe: Recipe, peak: int) -> None:
    """Keep a peak in bytes; where the cache can't be written, it is not kept."""
    file = _file(recipe)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        user_cache.replace(file, json.dumps({"batch_size": recipe.batch_size, "bytes": peak}))


def _file(recipe: Recipe) -> Path:
    key = {name: getattr(recipe, name) for name in DECISIVE} | {"is_guided": recipe.guidance_scale > 1}
    return user_cache.folder() / "peaks" / f"{fingerprint(key)}.json"
