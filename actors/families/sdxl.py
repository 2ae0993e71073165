"""SDXL base and turbo: a UNet with two CLIP encoders, and a VAE that overflows in float16.
Knows this family; imports torch and diffusers inside of functions only."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors import random_parts
from actors.recipe import Recipe

if TYPE_CHECKING:
    import torch

_UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_LATENTS = {"latent_channels": 4, "scaling_factor": 0.13025}
_TIME_IDS = 6
"""Numbers that the UNet gets in addition to the pooled embedding: original size, crop and target size."""
_CLIP_TOKENS = 77


class SDXL:
    """SDXL as `actors.families.Family` describes it."""

    name = "sdxl"
    title = "SDXL"
    colour = "#1f5fa8"
    default_path = "stabilityai/sdxl-turbo"
    guidance_scales: Mapping[str, float] = {"turbo": 0.0, "SDXL base": 5.0}
    takes_negative_prompt = True

    pipeline = "StableDiffusionXLPipeline"
    load_arguments: Mapping[str, Any] = {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}
    denoiser = "unet"
    compiles_whole_denoiser = True  # half of its layers are resnets, which are no repeated blocks
    compiling_steps = 12_000.0  # 180 s for UNet and decoder (assumed), 0.015 s per step (half of an A100's 0.026)
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    dtypes: Mapping[str, str] = {"cpu": "float32", "cuda": "float16"}
    vae_dtype: str | None = "float32"

    default_latents = 128
    config_has_size = True
    batch_size_at_512 = 8
    published_parameters: Mapping[str, float] = {
        "unet": 2.567e9,
        "vae": 0.084e9,
        "text_encoder": 0.123e9,
        "text_encoder_2": 0.695e9,
    }
    decoding_bytes = 3072.0

    random_configs: Mapping[str, Mapping[str, dict[str, Any]]] = {
        random_parts.MID: {
            "unet": {
                **_UNET,
                "sample_size": 32,
                "block_out_channels": (64, 128, 256),
                "attention_head_dim": (2, 4, 8),
                "transformer_layers_per_block": (1, 1, 2),
                "cross_attention_dim": 256,
                "addition_time_embed_dim": 32,
                "projection_class_embeddings_input_dim": 320,  # 6 time ids * 32, and the pooled 128
            },
            "vae": {**random_parts.MID_VAE, **_LATENTS},
        },
        random_parts.FULL: {
            "unet": {
                **_UNET,
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280),
                "attention_head_dim": (5, 10, 20),
                "transformer_layers_per_block": (1, 2, 10),
                "cross_attention_dim": 2048,
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "vae": {**random_parts.FULL_VAE, **_LATENTS, "sample_size": 512},
        },
    }
    random_scheduler: Mapping[str, Any] = {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "timestep_spacing": "trailing",
    }

    def denoising_bytes(self, images: int, pixels: int, is_guided: bool) -> float:
        """Guidance denoises each image twice."""
        return 162.0 * pixels * images * (1 + is_guided)

    def size_multiple(self, vae_factor: int) -> int:
        """The pipeline refuses sizes that 8 does not divide, with any VAE."""
        return math.lcm(8, vae_factor)

    def recipe_fields(self, flags: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, Any]:
        """It has none of its own."""
        return {}

    def encode(self, pipe: Any, recipe: Recipe, prompt: str) -> "dict[str, torch.Tensor]":
        """Both encoders' embeddings and the pooled one, and the negative ones where guidance needs them."""
        embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompt,
            negative_prompt=recipe.negative_prompt,
            device=recipe.device,
            do_classifier_free_guidance=recipe.guidance_scale > 1,
        )
        named = {
            "prompt_embeds": embeds,
            "pooled_prompt_embeds": pooled,
            "negative_prompt_embeds": negative,
            "negative_pooled_prompt_embeds": negative_pooled,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def token_limits(self, pipe: Any, recipe: Recipe) -> list[tuple[Any, int]]:
        """Those of both tokenizers; some models lack the first one."""
        tokenizers = (pipe.tokenizer, pipe.tokenizer_2)
        return [(tokenizer, tokenizer.model_max_length) for tokenizer in tokenizers if tokenizer is not None]

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """It takes none of its own."""
        return {}

    def decode(self, pipe: Any, recipe: Recipe, latents: "torch.Tensor") -> "torch.Tensor":
        """Latents are (n, 4, height / 8, width / 8)."""
        import torch

        vae = pipe.vae
        latents = latents.to(vae.dtype)
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        if mean is not None and std is not None:
            mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(latents) for value in (mean, std))
            latents = latents * std / vae.config.scaling_factor + mean
        else:
            latents = latents / vae.config.scaling_factor
        return vae.decode(latents, return_dict=False)[0]

    def random_encoders(self) -> dict[str, Any]:
        """Two small CLIPs."""
        return {
            "text_encoder": random_parts.clip_encoder(),
            "tokenizer": random_parts.clip_tokenizer(),
            "text_encoder_2": random_parts.clip_encoder(with_projection=True),
            "tokenizer_2": random_parts.clip_tokenizer(),
        }

    def random_embedding_shapes(self, config: Any, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Both encoders' embeddings side by side, and the pooled one, whose width is what the time ids leave of it."""
        pooled = config.projection_class_embeddings_input_dim - _TIME_IDS * config.addition_time_embed_dim
        return {"prompt_embeds": (1, _CLIP_TOKENS, config.cross_attention_dim), "pooled_prompt_embeds": (1, pooled)}


FAMILY = SDXL()
