"""The tiny offline pipelines: diffusers' real classes with small seeded weights, built in memory.
They draw coloured mush, but through the very code that draws with SDXL and Flux. torch is imported on building only."""

from typing import Any

NAME = "tiny"
"""What `--model_path` calls them."""

REVISION = "builtin:1"
"""Raise it when anything below changes a pixel."""

_VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "model_index": {"_class_name": "StableDiffusionXLPipeline"},
        "scheduler": {
            "_class_name": "EulerAncestralDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "timestep_spacing": "trailing",
        },
        "unet": {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4),
            "transformer_layers_per_block": 1,
            "cross_attention_dim": 64,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80,  # 6 time ids * 8, and the pooled 32
        },
        "vae": {**_VAE, "latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True},
    },
    "flux": {
        "model_index": {"_class_name": "FluxPipeline"},
        "scheduler": {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 1.0,
        },
        "transformer": {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 4, 8),
        },
        "vae": {
            **_VAE,
            "latent_channels": 16,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
    },
}
"""Each family's parts by the folder they would have in a saved pipeline; what a reader of such a folder sees."""


def default_size(model_type: str) -> int:
    """Height and width drawn where none is asked for, in pixels."""
    return CONFIGS[model_type]["vae"]["sample_size"]


def build(model_type: str) -> Any:
    """A pipeline of the family on the CPU in float32; the same weights at every call, whatever torch's seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        return {"sdxl": _build_sdxl, "flux": _build_flux}[model_type]()


def _build_sdxl() -> Any:
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    config = CONFIGS["sdxl"]
    scheduler: Any = EulerAncestralDiscreteScheduler(**_without_class(config["scheduler"]))
    return StableDiffusionXLPipeline(
        vae=_colourful(AutoencoderKL(**config["vae"])),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()).eval(),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=UNet2DConditionModel(**config["unet"]).eval(),
        scheduler=scheduler,
        add_watermarker=False,
    )


def _build_flux() -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5Config, T5EncoderModel

    config = CONFIGS["flux"]
    t5 = T5Config(vocab_size=_T5_VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_without_class(config["scheduler"])),
        vae=_colourful(AutoencoderKL(**config["vae"])),
        text_encoder=CLIPTextModel(_clip_config()).eval(),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=_t5_tokenizer(),
        transformer=FluxTransformer2DModel(**config["transformer"]).eval(),
    )


def _without_class(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "_class_name"}


def _colourful(vae: Any) -> Any:
    """Random weights decode to one grey; a stronger last layer makes pictures that differ to the eye and the tests."""
    import torch

    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(1.2)
    return vae.eval()


def _byte_pieces() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    pieces = [*_byte_pieces(), *(piece + "</w>" for piece in _byte_pieces()), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77)


def _clip_config() -> Any:
    from transformers import CLIPTextConfig

    size = 2 * 256 + 2
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


_T5_CHARACTERS = [chr(code) for code in range(32, 127)]
_T5_VOCABULARY = 3 + 1 + len(_T5_CHARACTERS)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]: made on import

    pieces = ["<pad>", "</s>", "<unk>", "▁", *_T5_CHARACTERS]
    return T5TokenizerFast(
        vocab=[(piece, 0.0 if index < 3 else -2.0) for index, piece in enumerate(pieces)],
        extra_ids=0,
        model_max_length=512,
    )
