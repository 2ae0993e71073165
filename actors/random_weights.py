"""Models for measuring what generating costs: diffusers' real classes with random, seeded weights, built in memory.
Knows sizes and how to build them; nothing of recipes. Their images show nothing, and cost what real ones cost."""

import hashlib
from typing import Any

MID, FULL = NAMES = ("mid", "full")
"""What `--model_path` calls them: one for CPUs, and the architectures of SDXL turbo and FLUX.1 schnell for GPUs."""

REVISION = "builtin:1"
"""Raise it when anything below changes a pixel."""

_SCHEDULERS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "_class_name": "EulerAncestralDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "timestep_spacing": "trailing",
    },
    "flux": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
}
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": True,
}
_SDXL_LATENTS = {"latent_channels": 4, "scaling_factor": 0.13025}
_FLUX_LATENTS = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
# an eighth of the real VAE's channels: beside the small UNet a decode costs as much as beside the real one, 1.3 steps
_MID_VAE = {**_VAE, "block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8, "sample_size": 256}
_FULL_VAE = {**_VAE, "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32}

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    MID: {
        "sdxl": {
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
            "vae": {**_MID_VAE, **_SDXL_LATENTS},
        },
        "flux": {
            "transformer": {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 2,
                "num_single_layers": 4,
                "attention_head_dim": 64,
                "num_attention_heads": 6,
                "joint_attention_dim": 256,
                "pooled_projection_dim": 128,
                "axes_dims_rope": (16, 24, 24),
            },
            "vae": {**_MID_VAE, **_FLUX_LATENTS},
        },
    },
    FULL: {
        "sdxl": {
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
            "vae": {**_FULL_VAE, **_SDXL_LATENTS, "sample_size": 512},
        },
        "flux": {
            "transformer": {
                "patch_size": 1,
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": False,
                "axes_dims_rope": (16, 56, 56),
            },
            "vae": {**_FULL_VAE, **_FLUX_LATENTS, "sample_size": 1024},
        },
    },
}
"""Each model's parts by their names in a pipeline."""


def scheduler(model_type: str) -> dict[str, Any]:
    """The scheduler's config with its class's name, as a saved pipeline has it."""
    return dict(_SCHEDULERS[model_type])


def default_size(name: str, model_type: str) -> int:
    """Height and width drawn where none is asked for, in pixels."""
    return CONFIGS[name][model_type]["vae"]["sample_size"]


def build(name: str, model_type: str, dtypes: dict[str, Any], device: str) -> Any:
    """A pipeline with the same weights at every call on one kind of device.

    Args:
        dtypes: torch dtypes of the parts by name, "default" for those that are not named.
        device: where the parts are built: full-size ones would take minutes on the CPU.
    """
    import torch

    with torch.random.fork_rng(devices=[device] if device == "cuda" else []), torch.device(device):
        torch.manual_seed(20)
        parts = {
            part: _with_dtype(part, config, dtypes.get(part, dtypes["default"]))
            for part, config in CONFIGS[name][model_type].items()
        }
        encoders = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        parts |= dict.fromkeys(encoders) if name == FULL else _encoders(model_type, dtypes["default"])
    pipe = _pipeline(model_type, parts)
    if name == FULL:
        _embed_at_random(pipe, model_type)
    return pipe


def build_part(part: str, config: dict[str, Any]) -> Any:
    """A denoiser or VAE, in torch's default dtype and on its default device."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel

    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
    }
    return classes[part](**config).eval()


def _with_dtype(part: str, config: dict[str, Any], dtype: Any) -> Any:
    """Built in its dtype: twelve billion weights in float32 first would not fit beside each other."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        module = build_part(part, config).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if part == "vae":
        module.decoder.conv_out.weight.mul_(1.2)  # random weights decode to one grey otherwise
    return module


def _pipeline(model_type: str, parts: dict[str, Any]) -> Any:
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        StableDiffusionXLPipeline,
    )

    config = scheduler(model_type)
    del config["_class_name"]
    if model_type == "flux":
        return FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(**config), **parts)
    ancestral: Any = EulerAncestralDiscreteScheduler(**config)
    return StableDiffusionXLPipeline(scheduler=ancestral, add_watermarker=False, **parts)


def _embed_at_random(pipe: Any, model_type: str) -> None:
    """Instead of encoders: embeddings of the real sizes, drawn from a seed that is the prompt's hash.

    Encoding a prompt then costs nothing: what the encoders of the real models cost is not measured. Negative prompts
    are zeros, as the pipeline makes them.
    """
    import torch

    own, denoiser = pipe.encode_prompt, pipe.unet if model_type == "sdxl" else pipe.transformer
    config = denoiser.config
    if model_type == "sdxl":
        width = config.cross_attention_dim
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    else:
        width, pooled = config.joint_attention_dim, config.pooled_projection_dim

    def encode_prompt(
        prompt: Any = None, prompt_embeds: Any = None, pooled_prompt_embeds: Any = None, **given: Any
    ) -> Any:
        if prompt_embeds is None:
            text = prompt if isinstance(prompt, str) else prompt[0]
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            generator = torch.Generator("cpu").manual_seed(seed)
            tokens = given.get("max_sequence_length", 77) if model_type == "flux" else 77
            shapes = (1, tokens, width), (1, pooled)
            prompt_embeds, pooled_prompt_embeds = (
                torch.randn(shape, generator=generator).to(denoiser.device, denoiser.dtype) for shape in shapes
            )
        if "negative_prompt" in given:
            given["negative_prompt"] = None
        given |= {"prompt_embeds": prompt_embeds, "pooled_prompt_embeds": pooled_prompt_embeds}
        return own(prompt=None, **given)

    pipe.encode_prompt = encode_prompt


def _encoders(model_type: str, dtype: Any) -> dict[str, Any]:
    """Small text encoders with byte tokenizers."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

    parts: dict[str, Any] = {"text_encoder": CLIPTextModel(_clip_config()), "tokenizer": _clip_tokenizer()}
    if model_type == "sdxl":
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(_clip_config()), "tokenizer_2": _clip_tokenizer()}
    else:
        parts |= {"text_encoder_2": T5EncoderModel(_t5_config()), "tokenizer_2": _t5_tokenizer()}
    for name in ("text_encoder", "text_encoder_2"):
        parts[name].eval().requires_grad_(False).to(dtype)
    return parts


_CLIP_TOKENS = 2 * 256 + 2  # each byte within a word and at its end, begin, end
_T5_CHARACTERS = [chr(code) for code in range(32, 127)]
_T5_TOKENS = 4 + len(_T5_CHARACTERS)


def _clip_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=_CLIP_TOKENS,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=128,
        bos_token_id=_CLIP_TOKENS - 2,
        eos_token_id=_CLIP_TOKENS - 1,
        pad_token_id=_CLIP_TOKENS - 1,
    )


def _clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    pieces = sorted(ByteLevel.alphabet())
    pieces += [*(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77)


def _t5_config() -> Any:
    from transformers import T5Config

    return T5Config(vocab_size=_T5_TOKENS, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4)


def _t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]: made on import

    pieces = ["<pad>", "</s>", "<unk>", "▁", *_T5_CHARACTERS]
    scores = [(piece, 0.0 if index < 3 else -2.0) for index, piece in enumerate(pieces)]
    return T5TokenizerFast(vocab=scores, extra_ids=0, model_max_length=512)
