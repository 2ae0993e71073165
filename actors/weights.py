"""A model's folder by its files' names: which of them a pipeline reads, and in which variant.
Knows how diffusers and transformers name weights; opens nothing."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from actors.errors import ModelError

PARTS = {
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
    "flux": ("transformer", "vae", "text_encoder", "text_encoder_2"),
}
"""The folders of each family that hold weights."""
OTHERS = ("scheduler", "tokenizer", "tokenizer_2")
INDEX = "model_index.json"
CONFIGS = (".json", ".txt", ".model")
"""Endings of the files beside the weights that a pipeline reads: configs, vocabularies, merges."""
PUBLISHED = ("fp16", "bf16")
"""Variants, those first that are looked for where none is named."""
_NAME = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<old>[\w-]+))?\.safetensors"
)
"""Whole or in shards, whose older names have the variant behind the shard's number."""


def names_in(folder: Path) -> list[str]:
    """All files of a folder, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def variants(names: Iterable[str], part: str) -> set[str | None]:
    """The variants that a part's weights are there in; None is the one without a name."""
    found = (_NAME.fullmatch(name.removeprefix(f"{part}/")) for name in names if name.startswith(f"{part}/"))
    return {match["variant"] or match["old"] for match in found if match}


def of_part(names: Collection[str], part: str, variant: str | None) -> list[str]:
    """The files of a part that are loaded for a variant: its own, or those without one where it has none."""
    chosen = variant if variant in variants(names, part) else None
    matches = {name: _NAME.fullmatch(name.removeprefix(f"{part}/")) for name in names if name.startswith(f"{part}/")}
    return sorted(name for name, match in matches.items() if match and (match["variant"] or match["old"]) == chosen)


def read_by(names: Collection[str], model_type: str, variant: str | None) -> list[str]:
    """All files of a folder that a family's pipeline reads in this variant."""
    folders = (*PARTS[model_type], *OTHERS)
    read = {INDEX}
    for name in names:
        folder, _, file = name.partition("/")
        if folder in folders and "/" not in file and file.endswith(CONFIGS):
            read.add(name)
    for part in PARTS[model_type]:
        read |= set(of_part(names, part, variant))
    return sorted(read)


def choose(names: Collection[str], model_type: str, asked: str | None, half: bool) -> str | None:
    """The variant to load: the one asked for, else one that every part has files for or does without.

    Args:
        half: whether float16 is wanted, so that fp16 files serve where every part has them.

    Raises:
        ModelError: a part has no weights that could be loaded, or none beside the others'.
    """
    there = {part: variants(names, part) for part in PARTS[model_type]}
    for part, found in there.items():
        if not found:
            raise ModelError(_no_weights(names, part))
    known = {variant for found in there.values() for variant in found if variant}
    if asked:
        if asked not in known:
            raise ModelError(f"has no weights of --variant {asked}, but {_told(there)}")
        candidates: list[str | None] = [asked]
    else:
        everywhere = half and all("fp16" in found for found in there.values())
        candidates = [*(["fp16"] if everywhere else []), None, *(name for name in PUBLISHED if name in known)]
        candidates += sorted(known - set(PUBLISHED))
    for variant in candidates:
        if all(found & {variant, None} for found in there.values()):
            return variant
    raise ModelError(f"its parts' weights are of different variants, {_told(there)}; no --variant loads them all")


def _told(there: dict[str, set[str | None]]) -> str:
    return ", ".join(
        f"{part}/ has {' and '.join(sorted(variant or 'plain ones' for variant in found))}"
        for part, found in there.items()
    )


def _no_weights(names: Collection[str], part: str) -> str:
    stray = sorted(name for name in names if name.startswith(f"{part}/") and name.endswith(".safetensors"))
    if not stray:
        return f"no .safetensors weights in {part}/; other formats are not loaded"
    usual = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    return f"{stray[0]}: a name that is not looked for; give weights the name {part}/{usual}.safetensors"
