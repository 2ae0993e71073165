"""Parts that models with random weights share: their names, a VAE's config, small text encoders with byte tokenizers.
Knows no family; imports torch and transformers inside of functions only."""

from typing import Any

MID, FULL = NAMES = ("mid", "full")
"""What `--model_path` calls them: one for CPUs, and the architectures of published models for GPUs."""

_VAE = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": True,
}
# an eighth of the real VAE's channels: relative to its UNet a decode costs as much as the real one, 1.3 steps
MID_VAE = {**_VAE, "block_out_channels": (16, 32, 64, 64), "norm_num_groups": 8, "sample_size": 256}
FULL_VAE = {**_VAE, "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32}

CLIP_TOKENS = 2 * 256 + 2  # each byte within a word and at its end, begin, end
T5_CHARACTERS = [chr(code) for code in range(32, 127)]
T5_TOKENS = 4 + len(T5_CHARACTERS)


def clip_encoder(with_projection: bool = False) -> Any:
    """A small CLIP text encoder, of width 128."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=CLIP_TOKENS,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=128,
        bos_token_id=CLIP_TOKENS - 2,
        eos_token_id=CLIP_TOKENS - 1,
        pad_token_id=CLIP_TOKENS - 1,
    )
    return CLIPTextModelWithProjection(config) if with_projection else CLIPTextModel(config)


def clip_tokenizer() -> Any:
    """One that knows every byte; 77 tokens at most."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    pieces = sorted(ByteLevel.alphabet())
    pieces += [*(f"{piece}</w>" for piece in pieces), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", model_max_length=77)


def t5_encoder() -> Any:
    """A small T5 encoder, of width 256."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=T5_TOKENS, d_model=256, d_kv=64, d_ff=512, num_layers=2, num_heads=4))


def t5_tokenizer() -> Any:
    """One that knows printable ASCII; 512 tokens at most."""
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]: made on import

    pieces = ["<pad>", "</s>", "<unk>", "▁", *T5_CHARACTERS]
    scores = [(piece, 0.0 if index < 3 else -2.0) for index, piece in enumerate(pieces)]
    return T5TokenizerFast(vocab=scores, extra_ids=0, model_max_length=512)
