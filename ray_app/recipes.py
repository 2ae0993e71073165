"""Options and a model's card become the recipe; two recipes are compared field by field.
Knows defaults that depend on model and device."""

import dataclasses
from typing import Any

from actors.recipe import FLOW_MATCH, LOW_BITS_FIELDS, RETURNS_X0, Recipe
from ray_app.errors import Refused
from ray_app.model import ModelCard, read_card
from ray_app.options import Generate

PIXELS_512 = 512 * 512
DTYPES = {
    ("cpu", "sdxl"): "float32",
    ("cpu", "flux"): "float32",
    ("cuda", "sdxl"): "float16",
    ("cuda", "flux"): "bfloat16",
}
"""What a model is drawn in, by device and family."""


def resolve(options: Generate) -> Recipe:
    """The recipe that these options mean.

    Raises:
        Refused: a model that can't be used, a size or number of steps that it can't do.
    """
    device = options.target_device()
    dtype = DTYPES[device, options.model_type]
    card = read_card(options.model_type, options.model(), options.revision, dtype == "float16", options.variant)
    height = card.default_size if options.height is None else options.height
    width = card.default_size if options.width is None else options.width
    card.check_size(height, width)
    for steps in _runs(options):
        card.check_steps(steps)
    _check_snapshot(options, card)

    vae_dtype = options.vae_dtype
    if vae_dtype is None:
        vae_dtype = "float32" if options.model_type == "sdxl" else dtype  # SDXL's overflows in half
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = default_batch_size(options.model_type, device, height, width)
    has_quality = options.image_format != "png"
    return Recipe(
        model_type=options.model_type,
        model_path=card.path,
        model_revision=card.revision(),
        variant=card.variant,
        scheduler=card.scheduler,
        scheduler_config=card.scheduler_fingerprint(),
        dtype=dtype,
        vae_dtype=vae_dtype,
        device=device,
        num_inference_steps=options.max_inference_steps,
        guidance_scale=options.guidance_scale,
        height=height,
        width=width,
        max_sequence_length=_prompt_tokens(options, card),
        negative_prompt=options.negative_prompt,
        batch_size=batch_size,
        image_format=options.image_format,
        image_quality=options.image_quality if has_quality else None,
        mode=options.mode,
        compiled=options.compile,
    )


def default_batch_size(model_type: str, device: str, height: int, width: int) -> int:
    """Prompts denoised together where nothing is said: what fits the smallest GPUs the families are run on."""
    if device == "cpu":
        return 4
    at_512 = {"sdxl": 8, "flux": 4}[model_type]
    return max(1, at_512 * PIXELS_512 // (height * width))


def differences(ours: Recipe, theirs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Fields in which another recipe (or what is known of it) differs: those that matter, and those of low bits only.

    Each as "--flag: VALUE there, VALUE here".
    """
    strict, low_bits = [], []
    for field in dataclasses.fields(ours):
        here = getattr(ours, field.name)
        there = theirs.get(field.name, field.default if theirs and "later" in field.metadata else here)
        if there != here:
            text = f"{FLAGS.get(field.name, field.name)} is {there!r} there and {here!r} here"
            (low_bits if field.name in LOW_BITS_FIELDS else strict).append(text)
    return strict, low_bits


FLAGS = {
    "num_inference_steps": "--max_inference_steps",
    "model_path": "--model_path",
    "model_revision": "the model's revision",
    "variant": "--variant",
    "scheduler_config": "the scheduler's config",
    "guidance_scale": "--guidance_scale",
    "height": "--height",
    "width": "--width",
    "max_sequence_length": "--max_sequence_length",
    "negative_prompt": "--negative_prompt",
    "image_format": "--image_format",
    "image_quality": "--image_quality",
    "batch_size": "--batch_size",
    "device": "--device",
    "vae_dtype": "--vae_dtype",
    "mode": "--mode",
    "compiled": "--compile",
}
"""How a user says a recipe's field."""


def _runs(options: Generate) -> set[int]:
    """The numbers of steps that the model is run for."""
    if options.mode == "separate":
        return {capture.step for capture in options.captures()}
    return {options.max_inference_steps}


def _prompt_tokens(options: Generate, card: ModelCard) -> int | None:
    """Of Flux, and no more than the tokenizer takes: one trained on short prompts draws worse with more padding."""
    if options.model_type != "flux":
        return None
    return min(options.max_sequence_length, card.prompt_tokens or options.max_sequence_length)


def _check_snapshot(options: Generate, card: ModelCard) -> None:
    if options.snapshot != "xt" and card.scheduler not in RETURNS_X0 | FLOW_MATCH:
        raise Refused(f"--snapshot {options.snapshot}: {card.scheduler} gives no predicted clean image; use xt")
