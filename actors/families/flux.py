"""FLUX.1 schnell and dev: a transformer over packed latents, with a CLIP and a T5 encoder.
Knows this family; imports torch and diffusers inside of functions only."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actors import random_parts
from actors.recipe import Recipe

if TYPE_CHECKING:
    import torch

_TRANSFORMER = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64}
_LATENTS = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


class Flux:
    """FLUX.1 as `actors.families.Family` describes it."""

    name = "flux"
    title = "Flux"
    colour = "#c4561a"
    default_path = "black-forest-labs/FLUX.1-schnell"
    guidance_scales: Mapping[str, float] = {"schnell": 0.0, "FLUX dev": 3.5}
    takes_negative_prompt = False

    pipeline = "FluxPipeline"
    load_arguments: Mapping[str, Any] = {"image_encoder": None, "feature_extractor": None}
    denoiser = "transformer"
    compiles_whole_denoiser = False
    compiling_steps = 120.0  # 9.6 s, and 2.2 s per image of 28 steps, on an H100
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    dtypes: Mapping[str, str] = {"cpu": "float32", "cuda": "bfloat16"}
    vae_dtype: str | None = None

    default_latents = 128
    config_has_size = False
    batch_size_at_512 = 4
    published_parameters: Mapping[str, float] = {
        "transformer": 11.901e9,
        "vae": 0.084e9,
        "text_encoder": 0.123e9,
        "text_encoder_2": 4.762e9,
    }
    decoding_bytes = 3072.0

    random_configs: Mapping[str, Mapping[str, dict[str, Any]]] = {
        random_parts.MID: {
            "transformer": {
                **_TRANSFORMER,
                "num_layers": 2,
                "num_single_layers": 4,
                "attention_head_dim": 64,
                "num_attention_heads": 6,
                "joint_attention_dim": 256,
                "pooled_projection_dim": 128,
                "axes_dims_rope": (16, 24, 24),
            },
            "vae": {**random_parts.MID_VAE, **_LATENTS},
        },
        random_parts.FULL: {
            "transformer": {
                **_TRANSFORMER,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": False,
                "axes_dims_rope": (16, 56, 56),
            },
            "vae": {**random_parts.FULL_VAE, **_LATENTS, "sample_size": 1024},
        },
    }
    random_scheduler: Mapping[str, Any] = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 1.0,
    }

    def denoising_bytes(self, images: int, pixels: int, is_guided: bool) -> float:
        """The transformer reads a token per 16 x 16 pixels and up to 512 of the prompt; guidance is an input of it."""
        return 97e3 * (pixels / 256 + 512) * images

    def size_multiple(self, vae_factor: int) -> int:
        """Latents are packed two by two; the pipeline silently rounds other sizes down."""
        return 2 * vae_factor

    def recipe_fields(self, flags: Mapping[str, Any], tokenizer_limit: int | None) -> dict[str, Any]:
        """Prompt tokens that T5 reads, no more than the tokenizer takes: with padding, models trained on short prompts
        are worse."""
        requested = flags["max_sequence_length"]
        return {"max_sequence_length": min(requested, tokenizer_limit or requested)}

    def encode(self, pipe: Any, recipe: Recipe, prompt: str) -> "dict[str, torch.Tensor]":
        """T5's embeddings, and CLIP's pooled one."""
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=prompt,
            prompt_2=None,
            device=recipe.device,
            max_sequence_length=recipe.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def token_limits(self, pipe: Any, recipe: Recipe) -> list[tuple[Any, int]]:
        """T5's alone: CLIP's window of 77 is the model's design and does not count."""
        return [(pipe.tokenizer_2, recipe.max_sequence_length or 0)]

    def call_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """The length that the embeddings have."""
        return {"max_sequence_length": recipe.max_sequence_length}

    def decode(self, pipe: Any, recipe: Recipe, latents: "torch.Tensor") -> "torch.Tensor":
        """Latents are packed, (n, height * width / 256, 64)."""
        vae = pipe.vae
        latents = pipe._unpack_latents(latents, recipe.height, recipe.width, pipe.vae_scale_factor)
        latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0]

    def random_encoders(self) -> dict[str, Any]:
        """A small CLIP and a small T5."""
        return {
            "text_encoder": random_parts.clip_encoder(),
            "tokenizer": random_parts.clip_tokenizer(),
            "text_encoder_2": random_parts.t5_encoder(),
            "tokenizer_2": random_parts.t5_tokenizer(),
        }

    def random_embedding_shapes(self, config: Any, arguments: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """T5's embeddings, of the requested length, and CLIP's pooled one."""
        tokens = arguments.get("max_sequence_length", 77)
        return {
            "prompt_embeds": (1, tokens, config.joint_attention_dim),
            "pooled_prompt_embeds": (1, config.pooled_projection_dim),
        }


FAMILY = Flux()
