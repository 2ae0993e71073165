"""Options and a model's card become the recipe; two recipes are compared field by field.
Knows defaults that depend on model and device."""

import dataclasses
from typing import Any

import pyarrow.compute

from actors.families import FAMILIES
from actors.recipe import FAMILY_FIELDS, FLOW_MATCH, RETURNS_X0, Recipe
from ray_app.errors import ModelRefused, OutputRefused
from ray_app.generation.model_card import ModelCard, read_card
from ray_app.generation.options import Generate
from ray_app.generation.vae_card import VaeCard, default_dtype, read_vae
from ray_app.index import versions
from ray_app.index.rows import read_recipes, read_rows
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

PIXELS_512 = 512 * 512


def resolve(options: Generate) -> Recipe:
    """The recipe that these options mean; what is chosen automatically has its default, see `automatic`.

    Raises:
        Refused: a model that can't be used, a size or number of steps that it can't do.
    """
    device = options.target_device()
    family = FAMILIES[options.model_type]
    dtype = family.dtypes[device]
    card = read_card(options.model_type, options.model(), options.revision, dtype == "float16", options.variant)
    height = card.default_size if options.height is None else options.height
    width = card.default_size if options.width is None else options.width
    card.check_size(height, width)
    for steps in _runs(options):
        card.check_steps(steps)
    _check_snapshot(options, card)
    vae = _replacement_vae(options, card)

    batch_size = options.batch_size
    if batch_size is None or batch_size == "auto":
        batch_size = default_batch_size(options.model_type, device, height, width)
    decided_by_model = {
        "model_path": card.path,
        "model_revision": card.revision(),
        "variant": card.variant,
        "scheduler": card.scheduler,
        "scheduler_config": card.scheduler_fingerprint(),
        "dtype": dtype,
        "vae_dtype": options.vae_dtype or default_dtype(family, dtype, vae.config if vae else card.vae_config),
        "compiled": options.compile in ("on", True),  # a caller in Python may say True
        "vae_path": vae.path if vae else None,
        "vae_revision": vae.revision() if vae else None,
        "device": device,
        "height": height,
        "width": width,
        "batch_size": batch_size,
        "image_quality": None if options.image_format == "png" else options.image_quality,
    }
    decided_by_model |= dict.fromkeys(FAMILY_FIELDS)
    decided_by_model |= family.recipe_fields(vars(options), card.prompt_tokens)
    return Recipe(**_options_of_fields(options) | decided_by_model)


def _replacement_vae(options: Generate, card: ModelCard) -> VaeCard | None:
    """The VAE of --vae_path; None without it.

    Raises:
        Refused: one that does not fit the model.
    """
    if options.vae_path is None:
        if options.vae_revision is not None:
            raise ModelRefused(
                f"--vae_revision {options.vae_revision}: is for --vae_path; leave it out", flag="vae_revision"
            )
        return None
    vae = read_vae(options.vae_path, options.vae_revision)
    vae.check_fits(card)
    return vae


OPTIONS = {"num_inference_steps": "max_inference_steps", "compiled": "compile"}
"""Options of another name than the recipe's field that they decide."""
DESCRIPTIONS = {
    "model_revision": "the model's revision",
    "vae_revision": "the VAE's revision",
    "scheduler_config": "the scheduler's config",
}
"""Fields that no option decides alone, as messages name them."""


def _options_of_fields(options: Generate) -> dict[str, Any]:
    """The values of the recipe's fields that an option has."""
    names = {field.name: OPTIONS.get(field.name, field.name) for field in dataclasses.fields(Recipe)}
    return {field: getattr(options, option) for field, option in names.items() if hasattr(options, option)}


def _name_of_field(name: str) -> str:
    """A recipe's field as a message names it: the flag that decides it, where one does."""
    option = OPTIONS.get(name, name)
    return DESCRIPTIONS.get(name) or (f"--{option}" if option in Generate.__dataclass_fields__ else name)


def default_batch_size(model_type: str, device: str, height: int, width: int) -> int:
    """Prompts denoised together by default: as many as fit the smallest GPUs that the families run on."""
    if device == "cpu":
        return 4
    at_512 = FAMILIES[model_type].batch_size_at_512
    return max(1, at_512 * PIXELS_512 // (height * width))


def check_recipe(output: Output, recipe: Recipe) -> list[str]:
    """Compare with what generated this output's images; a warning for each difference that changes low bits only.

    Another version of torch, diffusers, transformers or pillow is one such difference: one warning names them all.

    Raises:
        Refused: another recipe, naming each field that differs and both values.
    """
    rows = read_rows(output, recipe.model_type, ["recipe", "run_id"], only=pc.field("status") == "ok")
    warnings = []
    known_recipes = read_recipes(output, recipe.model_type)
    for fingerprint in rows["recipe"].unique().to_pylist():
        fields_of_output = known_recipes.get(fingerprint, {})
        strict, low_bits = differences(recipe, fields_of_output)
        if strict:
            raise OutputRefused(
                f"{output.url}: holds {recipe.model_type} images of another recipe: {'; '.join(strict)};"
                f" take another --output_base_path{_revision_advice(recipe, fields_of_output)}"
            )
        warnings += [f"{output.url}: {text}: images may differ in their low bits" for text in low_bits]
    of_output = versions.read_versions(output, recipe.model_type, rows["run_id"].unique().to_pylist())
    if difference := versions.describe_difference(of_output):
        warnings.append(f"{output.url}: {difference}: the bytes of the images that this run generates may differ")
    return warnings


def _revision_advice(recipe: Recipe, fields_of_output: dict[str, Any]) -> str:
    """Which revisions match the output, where the hub's default branch has moved since; "" otherwise."""
    if not fields_of_output:
        return ""
    of_output, advice = Recipe(**{**vars(recipe), **fields_of_output}), ""
    for there, here, flag, what in (
        (of_output.hub_revision, recipe.hub_revision, "--revision", "the model"),
        (of_output.vae_hub_revision, recipe.vae_hub_revision, "--vae_revision", "the VAE"),
    ):
        if there and here and there != here:
            advice += f"; {flag} {there} selects {what} that generated them"
    return advice


def differences(recipe: Recipe, fields_of_output: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Fields in which a recipe differs from an output's recipe: those that are refused, and those of low bits only.

    Each is described as "--flag: this output has VALUE, this run requests VALUE".

    Args:
        fields_of_output: what is known of the output's recipe; an unknown field does not count as a difference.
    """
    strict, low_bits = [], []
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        # an older proxyqueue recorded its recipe without fields that were added later: it behaved as their defaults
        is_default = bool(fields_of_output) and "later" in field.metadata
        value_of_output = fields_of_output.get(field.name, field.default if is_default else value)
        if value_of_output == value:
            continue
        text = f"{_name_of_field(field.name)}: this output has {value_of_output!r}, this run requests {value!r}"
        if "low_bits" in field.metadata:
            low_bits.append(text)
        else:
            strict.append(text)
    return strict, low_bits


def _runs(options: Generate) -> set[int]:
    """The step counts of the denoising passes."""
    if options.mode == "separate":
        return {capture.step for capture in options.captures()}
    return {options.max_inference_steps}


def _check_snapshot(options: Generate, card: ModelCard) -> None:
    if options.snapshot != "xt" and card.scheduler not in RETURNS_X0 | FLOW_MATCH:
        raise ModelRefused(
            f"--snapshot {options.snapshot}: {card.scheduler} gives no predicted clean image; use xt", flag="snapshot"
        )
