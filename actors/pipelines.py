"""A recipe becomes a loaded diffusers pipeline, which encodes prompts, denoises and decodes.
Knows what all families have in common; nothing of batches' meaning, seeds or files."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors import checksums, hub, memory, noise, random_weights, tiny, weights
from actors.errors import ModelError
from actors.families import FAMILIES, Family
from actors.recipe import Recipe

Embeddings = dict[str, torch.Tensor]
"""One prompt's embeddings, by the name of the pipeline argument; each of batch size 1."""

LOG = logging.getLogger("proxyqueue")

LEAST_VOCABULARY = 0.95
"""Minimum share of an encoder's tokens that its tokenizer must know: T5's lacks 28 of 32,128."""


class Model:
    """A pipeline that is loaded for a recipe: what its family does, for this pipeline and recipe."""

    def __init__(self, family: Family, pipe: Any, recipe: Recipe):
        self.family, self.pipe, self.recipe = family, pipe, recipe
        self.denoiser = getattr(pipe, family.denoiser)

    def compile(self) -> None:
        """Let the denoiser and the VAE's decoder be compiled when they are first called."""
        if self.family.compiles_whole_denoiser:
            self.denoiser.compile()
        else:
            self.denoiser.compile_repeated_blocks()
        self.pipe.vae.decoder.compile()

    @torch.no_grad()
    def encode(self, prompt: str) -> Embeddings:
        """Embeddings of one prompt, as the pipeline itself would make them; negative ones if guidance needs them."""
        return self.family.encode(self.pipe, self.recipe, prompt)

    def is_truncated(self, prompt: str) -> bool:
        """Whether an encoder reads less than the whole prompt."""
        limits = self.family.token_limits(self.pipe, self.recipe)
        return any(_count_tokens(tokenizer, prompt) > limit for tokenizer, limit in limits)

    def call_arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline call that only this family takes."""
        return self.family.call_arguments(self.recipe)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """A batch's latents to pixels (n, 3, h, w) around [-1, 1], exactly as the pipeline's last lines do."""
        return self.family.decode(self.pipe, self.recipe, latents)


def pipeline_class(family: Family) -> Any:
    """The class of diffusers."""
    import diffusers

    return getattr(diffusers, family.pipeline)


def dtype_argument(dtypes: Any) -> dict[str, Any]:
    """`dtype` of the pipeline's `from_pretrained`; diffusers before 0.40 ignores that, and takes `torch_dtype`."""
    import diffusers

    major, minor = diffusers.__version__.split(".")[:2]
    return {"dtype" if (int(major), int(minor)) >= (0, 40) else "torch_dtype": dtypes}


def load(recipe: Recipe) -> Model:
    """Load the recipe's pipeline onto its device, ready to generate.

    Raises whatever diffusers raises for weights that can't be loaded. Only safetensors are read and no code of a
    model is run.
    """
    _quiet_libraries()
    if recipe.device == "cpu":
        memory.keep_freed()
    family = FAMILIES[recipe.model_type]
    dtypes = {"default": getattr(torch, recipe.dtype), "vae": getattr(torch, recipe.vae_dtype)}
    if recipe.model_path in random_weights.NAMES:
        pipe = random_weights.build(recipe.model_path, recipe.model_type, dtypes, recipe.device)
    else:
        pipe = _from_pretrained(family, recipe, dtypes)
    if recipe.vae_path:
        pipe.register_modules(vae=_vae(recipe, type(pipe.vae), dtypes["vae"]))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(recipe.device)
    model = Model(family, pipe, recipe)
    if recipe.compiled:
        model.compile()
    return model


def _from_pretrained(family: Family, recipe: Recipe, dtypes: dict[str, torch.dtype]) -> Any:
    folder = _folder(recipe)
    names = weights.names_in(folder)
    parts = pipeline_class(family).load_config(folder)
    encoders = {}
    for part in family.encoders:
        library, class_name = parts[part]
        if library == "transformers":
            variant = _variant(names, part, recipe.variant)
            encoders[part] = _encoder(folder, part, class_name, dtypes["default"], variant)
    pipe = pipeline_class(family).from_pretrained(
        folder,
        variant=recipe.variant,
        use_safetensors=True,
        **dtype_argument(dtypes),
        **encoders,
        **family.load_arguments,
    )
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            _check_whole(part, _without_values(module))
    for part, tokenizer in family.encoders.items():
        _check_tokenizer(pipe, part, tokenizer)
    return pipe


def _vae(recipe: Recipe, vae_class: Any, dtype: torch.dtype) -> Any:
    """The VAE that the recipe takes instead of the model's own."""
    folder = _folder_of_vae(recipe)
    variant = weights.vae_variant(weights.names_in(folder))
    vae = vae_class.from_pretrained(folder, variant=variant, use_safetensors=True, torch_dtype=dtype)
    _check_whole(str(recipe.vae_path), _without_values(vae))
    return vae


def _folder_of_vae(recipe: Recipe) -> Path:
    """Where this machine has it; see `_folder`."""
    if recipe.vae_hub_revision:
        return hub.files_of_vae(recipe, LOG.warning).fetch()
    folder = Path(recipe.vae_path or "")
    if not folder.is_dir():
        raise ModelError(f"the folder {folder} of --vae_path does not exist on this machine")
    if checksums.of_folder(folder, weights.read_of_vae(weights.names_in(folder))) != recipe.vae_revision:
        raise ModelError(f"{folder}: its files on this machine are not those that the run began with; copy them again")
    return folder


def _folder(recipe: Recipe) -> Path:
    """Where this machine has the recipe's model: in the hub's cache, or a local folder whose files are the same.

    Raises:
        ModelError: the hub does not provide it, or this machine's folder has other files.
    """
    if recipe.model_path == tiny.NAME:
        return tiny.folder(recipe.model_type)
    if recipe.hub_revision:
        return hub.files_of(recipe, LOG.warning).fetch()
    folder = Path(recipe.model_path)
    if not folder.is_dir():
        raise ModelError("this folder does not exist on this machine")
    names = weights.read_by(weights.names_in(folder), recipe.model_type, recipe.variant)
    if checksums.of_folder(folder, names) != recipe.model_revision:
        raise ModelError("its files on this machine are not those that the run began with; copy them again")
    return folder


def _variant(names: list[str], part: str, variant: str | None) -> str | None:
    """The variant to load of a part: diffusers falls back by itself on files without one, transformers does not."""
    return variant if variant in weights.variants(names, part) else None


def _encoder(folder: Path, part: str, class_name: str, dtype: torch.dtype, variant: str | None) -> Any:
    """A text encoder with all its weights: transformers gives those that its files lack random values.

    Raises:
        ModelError: weights are missing, or of another shape.
    """
    import transformers

    encoder, loading_info = getattr(transformers, class_name).from_pretrained(
        folder,
        subfolder=part,
        dtype=dtype,
        variant=variant,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    mismatched = [name for name, *_ in loading_info["mismatched_keys"]]
    _check_whole(part, [*loading_info["missing_keys"], *mismatched])
    if unknown := sorted(loading_info["unexpected_keys"]):
        LOG.warning(f"{part}: {len(unknown)} weights that it does not use, {unknown[0]} among them")
    return encoder


def _without_values(module: torch.nn.Module) -> Iterator[str]:
    """The weights that a model's files lack: diffusers leaves them without values."""
    return (name for name, value in module.state_dict().items() if value.is_meta)


def _check_whole(part: str, lacking: Iterable[str]) -> None:
    if names := sorted(lacking):
        raise ModelError(
            f"{part} lacks {len(names)} of its weights, or has them in another shape, {names[0]} among them;"
            " download its files again"
        )


def _check_tokenizer(pipe: Any, part: str, name: str) -> None:
    """Raise ModelError if the tokenizer of an encoder knows too few words: without its files it knows none at all."""
    tokenizer, encoder = getattr(pipe, name), getattr(pipe, part)
    if tokenizer is None or encoder is None:
        return
    known, read = len(tokenizer), encoder.config.vocab_size
    if known < LEAST_VOCABULARY * read:
        raise ModelError(
            f"{name} knows {known:,} tokens, and {part} reads {read:,}; a file of {name}/ is missing or another model's"
        )


def most_decoded(recipe: Recipe) -> int:
    """How many images are decoded at a time at most."""
    if recipe.device != "cuda":
        return recipe.batch_size
    return max(1, memory.DECODE_PIXELS // (recipe.height * recipe.width))


def decode_to_uint8(model: Model, latents: torch.Tensor, most: int | None = None) -> tuple[np.ndarray, list[bool]]:
    """A batch's latents to RGB pixels, uint8 (n, h, w, 3), with the pipelines' own rounding.

    Decoded in chunks of one fixed size that divides the batch, so that an image's position in it changes no bit.
    Also tells which samples' pixels are all finite: the others are black or worse, as in the pipelines.

    Args:
        most: images of a chunk at most; None for `most_decoded`.
    """
    fits = most or (most_decoded(model.recipe) if model.recipe.device == "cuda" else len(latents))
    chunk = max(size for size in range(1, len(latents) + 1) if len(latents) % size == 0 and size <= fits)
    images, finite = [], []
    for part in latents.split(chunk):
        pixels = (model.decode(part) / 2 + 0.5).clamp(0, 1).float()
        finite.append(torch.isfinite(pixels).flatten(1).all(1))
        images.append(_to_host((pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)))
    is_finite = torch.cat(finite).tolist()  # waits for the device, and so for all copies
    return torch.cat(images).numpy(), is_finite


def _to_host(pixels: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU that has the values once the device has come so far."""
    if not pixels.is_cuda:
        return pixels
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    return host.copy_(pixels, non_blocking=True)


def denoise(
    model: Model,
    embeddings: list[Embeddings],
    seeds: list[int],
    steps: int,
    callback: Callable[..., dict[str, Any]],
) -> None:
    """Run the model once for a batch, in this number of steps; the callback keeps what is needed.

    Each image has a fresh CPU generator of its own seed: a used one, or one for the batch, would change the images.
    """
    recipe, scheduler = model.recipe, model.pipe.scheduler
    batch = {name: torch.cat([prompt[name] for prompt in embeddings]) for name in embeddings[0]}
    with noise.copied_without_waiting(scheduler, recipe.device):
        model.pipe(
            **batch,
            **model.call_arguments(),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=steps,
            guidance_scale=recipe.guidance_scale,
            height=recipe.height,
            width=recipe.width,
            output_type="latent",
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=["latents"],
        )


def _quiet_libraries() -> None:
    """No progress bars or warnings from the libraries: what they report (truncation) is a column of the index."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library_logging in (diffusers_logging, transformers_logging):
        library_logging.disable_progress_bar()
        library_logging.set_verbosity_error()


def _count_tokens(tokenizer: Any, prompt: str) -> int:
    if tokenizer is None:  # a model without encoders, for measuring
        return 0
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
