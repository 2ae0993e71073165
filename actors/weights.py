"""A model's files by their names: which of them a pipeline reads, and in which variant.
Knows how diffusers and transformers name weights; opens no file."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from actors.errors import ModelError
from actors.families import FAMILIES

INDEX = "model_index.json"
VAE_CONFIG = "config.json"
"""The config of a VAE that is a folder of its own."""
CONFIGS = (".json", ".txt", ".model")
"""Endings of the other files that a pipeline reads: configs, vocabularies, merges."""
PUBLISHED = ("fp16", "bf16")
"""Variants that are tried by default, in this order."""
_NAME = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[\w-]+?))?(?:-\d{5}-of-\d{5})?(?:\.(?P<old>[\w-]+))?\.safetensors"
)
"""A weights file, whole or a shard; older names of shards have the variant after the shard's number."""


def parts(model_type: str) -> tuple[str, ...]:
    """The folders of a family's model that hold weights."""
    family = FAMILIES[model_type]
    return (family.denoiser, "vae", *family.encoders)


def names_in(folder: Path) -> list[str]:
    """All files of a folder, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def variants(names: Iterable[str], part: str) -> set[str | None]:
    """The variants in which a part's weights exist; None is the one without a name."""
    return set(_variant_of_files(names, part).values())


def _variant_of_files(names: Iterable[str], part: str) -> dict[str, str | None]:
    """The weights files of a part, each with its variant; "" is the folder itself."""
    variant_of_file, prefix = {}, f"{part}/" if part else ""
    for name in names:
        match = _NAME.fullmatch(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if match:
            variant_of_file[name] = match["variant"] or match["old"]
    return variant_of_file


def of_part(names: Collection[str], part: str, variant: str | None) -> list[str]:
    """The files of a part that are loaded for a variant: those of the variant, or if it has none those without one."""
    variant_of_file = _variant_of_files(names, part)
    chosen = variant if variant in variant_of_file.values() else None
    return sorted(name for name, variant_of_name in variant_of_file.items() if variant_of_name == chosen)


def in_root(names: Collection[str]) -> list[str]:
    """The weights files of a folder that is one model of transformers: one file, or its shards."""
    if "model.safetensors" in names:
        return ["model.safetensors"]
    plain = (name for name in names if (match := _NAME.fullmatch(name)) and not (match["variant"] or match["old"]))
    return sorted(name for name in plain if name.startswith("model-"))


def read_by(names: Collection[str], model_type: str, variant: str | None) -> list[str]:
    """All files of a folder that a family's pipeline reads in this variant."""
    folders = (*parts(model_type), "scheduler", *FAMILIES[model_type].encoders.values())
    read = {INDEX}
    for name in names:
        folder, _, file = name.partition("/")
        if folder in folders and "/" not in file and file.endswith(CONFIGS):
            read.add(name)
    for part in parts(model_type):
        read |= set(of_part(names, part, variant))
    return sorted(read)


def vae_variant(names: Collection[str]) -> str | None:
    """The variant in which a VAE in a folder of its own is loaded: none if such files exist, else a published one.

    Raises:
        ModelError: it has no weights that could be loaded.
    """
    found = variants(names, "")
    for variant in (None, *PUBLISHED, *sorted(name for name in found if name)):
        if variant in found:
            return variant
    raise ModelError("no .safetensors weights of a VAE in it, such as diffusion_pytorch_model.safetensors")


def read_of_vae(names: Collection[str]) -> list[str]:
    """The files that are read of a VAE in a folder of its own.

    Raises:
        ModelError: it has no weights that could be loaded.
    """
    return [VAE_CONFIG, *of_part(names, "", vae_variant(names))]


def choose(names: Collection[str], model_type: str, requested: str | None, half: bool) -> str | None:
    """The variant to load: the requested one, else one in which every part can be loaded.

    A part can be loaded in a variant if it has weights of that variant or weights without one.

    Args:
        half: whether the model runs in float16, so that fp16 files are preferred if every part has them.

    Raises:
        ModelError: a part has no weights that could be loaded, or there is no variant in which all parts can be.
    """
    variants_of_part = {part: variants(names, part) for part in parts(model_type)}
    for part, variants_ in variants_of_part.items():
        if not variants_:
            raise ModelError(_no_weights(names, part))
    named_variants = {variant for variant in set().union(*variants_of_part.values()) if variant}
    candidates: list[str | None] = []
    if requested:
        if requested not in named_variants:
            raise ModelError(f"has no weights of --variant {requested}, but {_describe(variants_of_part)}")
        candidates.append(requested)
    else:
        if half and all("fp16" in variants_ for variants_ in variants_of_part.values()):
            candidates.append("fp16")
        candidates.append(None)
        candidates += [name for name in PUBLISHED if name in named_variants]
        candidates += sorted(named_variants - set(PUBLISHED))
    for variant in candidates:
        if all(variants_ & {variant, None} for variants_ in variants_of_part.values()):
            return variant
    raise ModelError(
        f"its parts' weights are of different variants, {_describe(variants_of_part)}; no --variant loads them all"
    )


def _describe(variants_of_part: dict[str, set[str | None]]) -> str:
    texts = []
    for part, variants_ in variants_of_part.items():
        listed = " and ".join(sorted(variant or "plain ones" for variant in variants_))
        texts.append(f"{part}/ has {listed}")
    return ", ".join(texts)


def _no_weights(names: Collection[str], part: str) -> str:
    unknown = sorted(name for name in names if name.startswith(f"{part}/") and name.endswith(".safetensors"))
    if not unknown:
        return f"no .safetensors weights in {part}/; other formats are not loaded"
    usual = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
    return f"{unknown[0]}: not a name of weights; rename it to {part}/{usual}.safetensors"
