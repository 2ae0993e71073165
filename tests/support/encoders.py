"""A tiny CLIP of random weights, saved by save_pretrained: 32 pixels, vectors of 16 numbers."""

from pathlib import Path

IMAGE_SIZE, VECTOR_SIZE = 32, 16


def save_clip(folder: Path, seed: int = 0, **changes: int) -> Path:
    """Save one with its processor, and the tokenizer of the tiny SDXL; `changes` are of both parts' configs."""
    import torch
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from actors import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder("sdxl") / "tokenizer")
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **changes}
    text = {
        **part,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**part, "image_size": IMAGE_SIZE, "patch_size": 8}
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=VECTOR_SIZE))
    with torch.no_grad():  # or what an image shows would hardly matter
        for weight in model.parameters():
            weight.mul_(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE).save_pretrained(folder)
    return folder
