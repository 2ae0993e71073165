"""Models for measuring what generating costs: diffusers' real classes with random, seeded weights, built in memory.
Knows how to build them; a family knows their sizes. Their images show nothing, and cost what real ones cost."""

import hashlib
from collections.abc import Mapping
from typing import Any

from actors import random_parts
from actors.families import FAMILIES, Family

MID, FULL = NAMES = random_parts.NAMES

REVISION = "builtin:1"
"""Increment it when a change below, in `random_parts` or in a family's configs changes a pixel."""


def scheduler(model_type: str) -> dict[str, Any]:
    """The scheduler's config with its class's name, as a saved pipeline has it."""
    return dict(FAMILIES[model_type].random_scheduler)


def default_size(name: str, model_type: str) -> int:
    """Height and width generated where none is requested, in pixels."""
    return FAMILIES[model_type].random_configs[name]["vae"]["sample_size"]


def build(name: str, model_type: str, dtypes: dict[str, Any], device: str) -> Any:
    """A pipeline with the same weights at every call on one kind of device.

    Args:
        dtypes: torch dtypes of the parts by name, "default" for those that are not named.
        device: where the parts are built: full-size ones would take minutes on the CPU.
    """
    import diffusers
    import torch

    family = FAMILIES[model_type]
    with torch.random.fork_rng(devices=[device] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(20)
        parts = {}
        for part, config in family.random_configs[name].items():
            parts[part] = _with_dtype(part, config, dtypes.get(part, dtypes["default"]))
        if name == FULL:
            parts |= dict.fromkeys((*family.encoders, *family.encoders.values()))
        else:
            parts |= _encoders(family, dtypes["default"])
    parts["scheduler"] = build_part(family.random_scheduler)
    pipe = getattr(diffusers, family.pipeline)(**parts, **family.load_arguments)
    if name == FULL:
        _embed_at_random(pipe, family)
    return pipe


def build_part(config: Mapping[str, Any]) -> Any:
    """A scheduler or a model of diffusers, by its config's `_class_name`; in torch's default dtype and device."""
    import diffusers

    arguments = dict(config)
    return getattr(diffusers, arguments.pop("_class_name"))(**arguments)


def _with_dtype(part: str, config: dict[str, Any], dtype: Any) -> Any:
    """Built in its dtype: twelve billion weights in float32 first would not fit into memory."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = build_part(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if part == "vae":
        module.decoder.conv_out.weight.mul_(1.2)  # random weights decode to one grey otherwise
    return module


def _encoders(family: Family, dtype: Any) -> dict[str, Any]:
    """The family's small text encoders in this dtype, and their tokenizers."""
    parts = family.random_encoders()
    for name in family.encoders:
        parts[name].eval().requires_grad_(False).to(dtype)
    return parts


def _embed_at_random(pipe: Any, family: Family) -> None:
    """Instead of encoders: embeddings of the real sizes, of a seed that is the prompt's hash.

    Encoding a prompt then costs nothing: what the encoders of the real models cost is not measured. Negative prompts
    are zeros, as the pipeline makes them.
    """
    import torch

    own, denoiser = pipe.encode_prompt, getattr(pipe, family.denoiser)

    def encode_prompt(prompt: Any = None, prompt_embeds: Any = None, **arguments: Any) -> Any:
        embeddings = {"prompt_embeds": prompt_embeds}
        if prompt_embeds is None:
            text = prompt if isinstance(prompt, str) else prompt[0]
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            generator = torch.Generator("cpu").manual_seed(seed)
            for name, shape in family.random_embedding_shapes(denoiser.config, arguments).items():
                embeddings[name] = torch.randn(shape, generator=generator).to(denoiser.device, denoiser.dtype)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = None
        return own(prompt=None, **(arguments | embeddings))

    pipe.encode_prompt = encode_prompt
