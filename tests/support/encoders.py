"""A tiny CLIP of random weights, saved by save_pretrained; and workers that take a file's checksum for its vector."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.encoders import Encoded, Encoder
from ray_app.features.worker import FeatureWorker

BAD = b"not an image"
KILLS, KILLS_ONCE = b"SIGKILL", b"SIGKILL once"
"""Contents of files: one that can't be encoded, and those of which workers die, always or if none has yet."""
SECONDS_PER_ITEM = float(os.environ.get("SECONDS_PER_ITEM", "0.1"))

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


def save_siglip(folder: Path) -> Path:
    """A tiny SigLIP of random weights, with its processor and the same tokenizer."""
    import torch
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    from actors import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder("sdxl") / "tokenizer")
    part = {"hidden_size": VECTOR_SIZE, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**part, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_size": VECTOR_SIZE}
    vision = {**part, "image_size": IMAGE_SIZE, "patch_size": 8}
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return folder


def save_config(folder: Path, vector_size: int = VECTOR_SIZE) -> Path:
    """A folder that passes for a CLIP until it is loaded, which `SyntheticFeatureWorker` does not do."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": vector_size}))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def vector_of(content: bytes, size: int = VECTOR_SIZE) -> np.ndarray:
    """What `SyntheticEncoder` gives for a file's bytes, or a text's."""
    digest = hashlib.sha256(content).digest()
    return np.frombuffer(digest[:size], np.uint8).astype(np.float32)


class SyntheticEncoder:
    """Takes the place of `actors.encoder.ImageEncoder`: same calls, without torch."""

    def __init__(self, encoder: Encoder, pace: float = 0.0):
        self.encoder, self.pace = encoder, pace

    def prepare(self, images: Sequence[bytes | None], texts: Sequence[str | None]) -> list[bytes | None]:
        contents = [text.encode() if text is not None else image for image, text in zip(images, texts, strict=True)]
        died = Path(self.encoder.path) / "died"
        if KILLS in contents or (KILLS_ONCE in contents and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return contents

    def encode(self, contents: list[bytes | None]) -> list[Any]:
        time.sleep(self.pace * len(contents))
        bad = Encoded(None, "BadImage", "not an image of a known format")
        return [bad if content in (BAD, None) else Encoded(vector_of(content)) for content in contents]

    def give_up(self, rows: int, error_type: str, message: str) -> list[Any]:
        return [Encoded(None, error_type, message)] * rows


class SyntheticFeatureWorker(FeatureWorker):
    """Loads nothing."""

    def load(self, encoder: Encoder, threads: int | None) -> Any:
        self.encoder = encoder
        return SyntheticEncoder(encoder)


class PacedFeatureWorker(FeatureWorker):
    """The same at a steady pace, for runs that are killed or stopped on the way."""

    def load(self, encoder: Encoder, threads: int | None) -> Any:
        self.encoder = encoder
        return SyntheticEncoder(encoder, SECONDS_PER_ITEM)
