"""The tiny models before training: the classes and parts of SDXL and Flux, small enough for two cores.
Knows sizes and tokenizers; nothing of training or files."""

from collections.abc import Sequence
from typing import Any

import torch

from jobs.training import captions

SIZE = 64
"""Height and width of the images, in pixels."""

PROMPT_TOKENS = 48
"""Tokens that Flux's T5 reads: every step's attention pays for each of them, including padding."""

_VAE = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": SIZE,
    "latent_channels": 16,
    "mid_block_add_attention": False,
}
VAES: dict[str, dict[str, Any]] = {
    "sdxl": {**_VAE, "force_upcast": True},
    "flux": {**_VAE, "shift_factor": 0.0, "use_quant_conv": False, "use_post_quant_conv": False},
}
"""The same weights for both. SDXL's own has 4 channels; at 64 pixels 16 are what edges and colours need."""

UNET: dict[str, Any] = {
    "sample_size": SIZE // 4,
    "in_channels": 16,
    "out_channels": 16,
    "layers_per_block": 1,
    "block_out_channels": (32, 48, 64, 96),  # down to 2 x 2 pixels, where padding tells each pixel its place
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 2, 2, 4),
    "transformer_layers_per_block": 1,
    "cross_attention_dim": 48 + 96,  # what the two encoders say of a token
    "norm_num_groups": 8,
    "resnet_time_scale_shift": "scale_shift",
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 96,  # the time ids, and the pooled prompt
}
TRANSFORMER: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 96,
    "axes_dims_rope": (8, 12, 12),
}
TURBO = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",  # a small model's epsilon says little of the image where nearly all is noise
}
"""SDXL turbo's scheduler except for the prediction type."""


def untrained(model_type: str, words: Sequence[str], seed: int = 0) -> Any:
    """A pipeline of the family on the CPU whose tokenizers know these words, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"sdxl": _sdxl, "flux": _flux}[model_type](words)


def _sdxl(words: Sequence[str]) -> Any:
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = captions.clip_tokenizer(words)
    scheduler: Any = EulerAncestralDiscreteScheduler(**TURBO)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAES["sdxl"]),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 48)),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(tokenizer, 96)),
        tokenizer=tokenizer,
        tokenizer_2=captions.clip_tokenizer(words),
        unet=UNet2DConditionModel(**UNET),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _flux(words: Sequence[str]) -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    tokenizer, tokenizer_2 = captions.clip_tokenizer(words), captions.t5_tokenizer(words, PROMPT_TOKENS)
    t5 = T5Config(
        vocab_size=len(tokenizer_2), d_model=96, d_kv=24, d_ff=192, num_layers=2, num_heads=4, dropout_rate=0.0,
        initializer_factor=1.0,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(**TRANSFORMER)
    _start_as_copy(transformer)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0),
        vae=AutoencoderKL(**VAES["flux"]),
        text_encoder=CLIPTextModel(_clip_config(tokenizer, 96)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


@torch.no_grad()
def _start_as_copy(transformer: Any) -> None:
    """Have the last layer undo the first: what the transformer predicts contains its noisy input, at every step."""
    first, last = transformer.x_embedder, transformer.proj_out
    torch.nn.init.orthogonal_(first.weight)
    first.bias.zero_()
    last.weight.copy_(first.weight.T * (first.in_features / first.out_features) ** 0.5)  # the norm between has scaled
    last.bias.zero_()


def _clip_config(tokenizer: Any, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
