"""A family of models that the project does not have: Stable Diffusion 1, with one text encoder; as one would add it.
Knows the contract of `actors.families`; `OwnWorker` puts it into the list of the worker's process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors import random_parts
from actors.families import FAMILIES, Family
from actors.recipe import Recipe
from ray_app.generation.worker import ImageWorker

NAME = "own"


class StableDiffusion:
    """Stable Diffusion 1 as `actors.families.Family` describes it; without models for measuring."""

    name = NAME
    title = "Stable Diffusion"
    colour = "#2e7d32"
    default_path = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    guidance_scales: Mapping[str, float] = {"Stable Diffusion": 7.5}
    takes_negative_prompt = True

    pipeline = "StableDiffusionPipeline"
    load_arguments: Mapping[str, Any] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "feature_extractor": None,
        "image_encoder": None,
    }
    denoiser = "unet"
    compiles_whole_denoiser = True
    compiling_steps = 10_000.0
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer"}
    dtypes: Mapping[str, str] = {"cpu": "float32", "cuda": "float16"}
    vae_dtype: str | None = None

    default_latents = 64
    config_has_size = True
    batch_size_at_512 = 8
    published_parameters: Mapping[str, float] = {"unet": 0.86e9, "vae": 0.084e9, "text_encoder": 0.123e9}
    decoding_bytes = 3072.0

    random_configs: Mapping[str, Mapping[str, dict[str, Any]]] = {}
    random_scheduler: Mapping[str, Any] = {}

    def denoising_bytes(self, images: int, pixels: int, is_guided: bool) -> float:
        return 150.0 * pixels * images * (1 + is_guided)

    def size_multiple(self, vae_factor: int) -> int:
        return vae_factor

    def recipe_fields(self, flags: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, Any]:
        return {}

    def encode(self, pipe: Any, recipe: Recipe, prompt: str) -> dict[str, Any]:
        embeds, negative = pipe.encode_prompt(
            prompt=prompt,
            device=recipe.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=recipe.guidance_scale > 1,
            negative_prompt=recipe.negative_prompt,
        )
        named = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def token_limits(self, pipe: Any, recipe: Recipe) -> list[tuple[Any, int]]:
        return [(pipe.tokenizer, pipe.tokenizer.model_max_length)]

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        return {}

    def decode(self, pipe: Any, recipe: Recipe, latents: Any) -> Any:
        return pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]

    def random_encoders(self) -> dict[str, Any]:
        return {}

    def random_embedding_shapes(self, config: Any, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {}


FAMILY: Family = StableDiffusion()


def save_model(folder: Path) -> None:
    """A pipeline of this family with random weights, for images of 64 pixels."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(5)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
        )
        encoder = random_parts.clip_encoder()
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=random_parts.clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        **FAMILY.load_arguments,
    ).save_pretrained(folder)


class OwnWorker(ImageWorker):
    """Ray imports this module with it, in each worker's process."""

    def load(self, *arguments: Any) -> Any:
        FAMILIES[NAME] = FAMILY
        return super().load(*arguments)
