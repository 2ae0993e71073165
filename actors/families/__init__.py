"""Families of models: the contract that each family's module fulfils, and the one list of families.
Importing this imports neither torch nor diffusers, so that help texts and folder names can use it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from actors.families import flux, sdxl
from actors.recipe import Recipe

if TYPE_CHECKING:
    import torch


class Family(Protocol):
    """All that differs between families of models.

    Parts are named as in a saved pipeline's folder ("unet", "vae", "text_encoder"), dtypes as in torch ("float16").
    Methods that need torch or diffusers import them in their bodies.
    """

    name: str
    """Its key in `FAMILIES`: lower-case letters and digits, since flags, columns and folders contain it."""
    title: str
    """Its name in messages."""
    colour: str
    """The colour of its lines in plots, as "#rrggbb"."""
    default_path: str
    """The hub id of the model that is loaded where no path is given."""
    guidance_scales: Mapping[str, float]
    """What the cards of its published models give for `--guidance_scale`, by the model's name in that flag's help."""
    takes_negative_prompt: bool
    """Whether `--negative_prompt` is allowed."""

    pipeline: str
    """The pipeline's class in diffusers; a model whose model_index.json names it belongs to this family."""
    load_arguments: Mapping[str, Any]
    """More arguments of the class and of its `from_pretrained`; None for a part that is not loaded."""
    denoiser: str
    """The part that predicts noise or velocity at each step."""
    compiles_whole_denoiser: bool
    """What `--compile` compiles of it: all, or its repeated blocks alone, which takes seconds instead of minutes. All
    pays where much of its time is outside of these blocks."""
    compiling_steps: float
    """Denoising steps of an image of 1024 x 1024 pixels, on a GPU, whose savings by `--compile` pay for compiling."""
    encoders: Mapping[str, str]
    """The text encoders, each with its tokenizer; last the one that reads most of a prompt."""
    dtypes: Mapping[str, str]
    """The dtype that a model runs in, by device: "cpu" and "cuda"."""
    vae_dtype: str | None
    """The default dtype of its VAE, on any device; None where it is that of the model."""

    default_latents: int
    """Height and width of an image by default, in latent pixels, where no config gives them."""
    config_has_size: bool
    """Whether the denoiser's config may give them, as `sample_size`."""

    def size_multiple(self, vae_factor: int) -> int:
        """The number that divides every height and width in pixels; `vae_factor` is the number of pixels per latent."""
        ...

    batch_size_at_512: int
    """Prompts that are denoised together by default on a GPU, at 512 x 512 pixels."""
    published_parameters: Mapping[str, float]
    """Parameters of each part of the published models, for an estimate where their files are not on this machine."""
    decoding_bytes: float
    """Memory of a GPU that the published models' VAE needs per pixel that it decodes in float32."""

    def denoising_bytes(self, images: int, pixels: int, is_guided: bool) -> float:
        """Memory of a GPU that the published models' denoiser needs besides the weights, in its dtype there.

        Args:
            images: the number denoised together.
            pixels: of each image.
            is_guided: with classifier-free guidance.
        """
        ...

    def recipe_fields(self, flags: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, Any]:
        """The recipe's fields that only some families have: their names are in `recipe.FAMILY_FIELDS`.

        Args:
            flags: the values of all flags of `generate`.
            tokenizer_limit: the most tokens that the last tokenizer takes, None if its config does not say.
        """
        ...

    def encode(self, pipe: Any, recipe: Recipe, prompt: str) -> "dict[str, torch.Tensor]":
        """One prompt's embeddings as the pipeline makes them, by the name of the argument; each of batch size 1.

        Negative ones are among them where the recipe's guidance needs them.
        """
        ...

    def token_limits(self, pipe: Any, recipe: Recipe) -> list[tuple[Any, int]]:
        """The tokenizers that decide whether a prompt is truncated, each with its encoder's maximum of tokens."""
        ...

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Arguments of the pipeline's call that only this family takes, besides the embeddings."""
        ...

    def decode(self, pipe: Any, recipe: Recipe, latents: "torch.Tensor") -> "torch.Tensor":
        """A batch's latents to pixels (n, 3, height, width) around [-1, 1], exactly as the pipeline's last lines do."""
        ...

    random_configs: Mapping[str, Mapping[str, dict[str, Any]]]
    """Configs of the denoiser and the VAE for models with random weights, by the names in `random_weights.NAMES`; each
    with its class as `_class_name`, and the VAE's `sample_size` is the default size in pixels. Empty where a family has
    no such models."""
    random_scheduler: Mapping[str, Any]
    """The config of their scheduler, with its class as `_class_name`."""

    def random_encoders(self) -> dict[str, Any]:
        """Small text encoders with random weights, and their tokenizers, by their names in the pipeline."""
        ...

    def random_embedding_shapes(self, config: Any, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shapes of one prompt's embeddings by their names, for models without encoders.

        Args:
            config: the denoiser's config.
            arguments: those of the pipeline's `encode_prompt`.
        """
        ...


FAMILIES: dict[str, Family] = {
    "sdxl": sdxl.FAMILY,
    "flux": flux.FAMILY,
}
"""Every family by its name, the default one first. All else that depends on a family uses this."""


def listed() -> str:
    """The names as texts list them: "this or that"."""
    return " or ".join(FAMILIES)
