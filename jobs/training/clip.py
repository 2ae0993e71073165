"""The tiny CLIP before and while it learns: two small towers, images as generators leave them, names and prompts.
Knows images, captions and transformers' CLIP; nothing of options or the shipped files."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from jobs.training import captions
from jobs.training.emoji import Emoji
from jobs.training.fitting import fit
from jobs.training.models import SIZE
from jobs.training.stages import held_out

TEXT_TOKENS = 48
"""Tokens that it reads of a text."""
WIDTH = 96
"""Of both towers and of the vectors."""
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""With which images are normalised: to [-1, 1], as the training's images are."""
NOISES = (0.0, 0.0, 0.3, 0.6, 1.0)
"""Strengths of the noise in the autoencoder's latents, whose variance is 1, for an image's generated looks."""
SHARPEST = 100.0
"""The highest scale of the similarities, as in CLIP."""


def untrained(words: Sequence[str], seed: int = 0) -> Any:
    """A CLIPModel with random weights whose `tokenizer` knows these words."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = captions.clip_tokenizer(words)
    tokenizer.model_max_length = TEXT_TOKENS
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **tower,
            "num_hidden_layers": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_TOKENS,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8},
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(config)
    return model, tokenizer


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that `features --encoder` takes: weights in float16, tokenizer, how images are prepared."""
    from transformers import CLIPImageProcessorPil

    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)


@torch.no_grad()
def generated_looks(vae: Any, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """Each image as the autoencoder returns it, from latents with noise: uint8 (n, len(NOISES), 3, h, w)."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for part in pixels.split(64):
        latents, unit = vae.encode(part).latent_dist.mean, 1 / vae.config.scaling_factor
        noisy = [latents + noise * unit * torch.randn(latents.shape, generator=generator) for noise in NOISES]
        decoded = [vae.decode(one).sample.clamp(-1, 1) for one in noisy]
        parts.append(((torch.stack(decoded, 1) + 1) * 127.5).round().byte())
    return torch.cat(parts)


def train(
    model: Any,
    tokenizer: Any,
    emojis: Sequence[Emoji],
    pixels: torch.Tensor,
    looks: torch.Tensor,
    steps: int,
    batch: int,
    folder: Path,
) -> None:
    """Train both towers: an image and its prompt match each other, and neither matches any other emoji.

    A vector for each emoji is trained beside them, to which both of its sides are compared; it is not kept.

    Args:
        pixels: float32 (n, 3, h, w) in [-1, 1].
        looks: of `generated_looks`.
    """
    known = torch.nn.Embedding(len(emojis), model.config.projection_dim)
    with torch.no_grad():
        known.weight.normal_(generator=torch.Generator().manual_seed(0))
    taught = torch.nn.ModuleDict({"clip": model, "known": known})
    is_held_out = held_out(len(emojis)).tolist()

    def loss(generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(emojis), (batch,), generator=generator)
        rng = random.Random(generator.initial_seed())
        prompts = [prompt(emojis[index], rng, is_held_out[index]) for index in which.tolist()]
        tokens = tokenizer(prompts, padding="longest", truncation=True, return_tensors="pt")
        images = varied(_sampled(pixels, looks, which, generator), generator)
        seen = _unit(model.get_image_features(pixel_values=images).pooler_output)
        read = _unit(model.get_text_features(**tokens).pooler_output)
        vectors, scale = _unit(known.weight), model.logit_scale.exp().clamp(max=SHARPEST)
        by_emoji = sum(F.cross_entropy(scale * side @ vectors.T, which) for side in (seen, read))
        return by_emoji + contrast(scale * seen @ read.T, which)

    fit("clip", taught, loss, steps, folder, decay=0.99, learning_rate=2e-3, matrix_rate=0.01)


def train_texts(
    model: Any, tokenizer: Any, emojis: Sequence[Emoji], pixels: torch.Tensor, steps: int, batch: int, folder: Path
) -> None:
    """Train the text tower alone, which is cheap: each prompt against the finished vectors of all images."""
    text = torch.nn.ModuleDict({"tower": model.text_model, "projection": model.text_projection})
    is_held_out = held_out(len(emojis)).tolist()
    with torch.no_grad():
        parts = [_unit(model.get_image_features(pixel_values=part).pooler_output) for part in pixels.split(128)]
        vectors, scale = torch.cat(parts), model.logit_scale.exp().clamp(max=SHARPEST)

    def loss(generator: torch.Generator) -> torch.Tensor:
        which = torch.randint(len(emojis), (batch,), generator=generator)
        rng = random.Random(generator.initial_seed())
        prompts = [prompt(emojis[index], rng, is_held_out[index]) for index in which.tolist()]
        tokens = tokenizer(prompts, padding="longest", truncation=True, return_tensors="pt")
        read = _unit(model.get_text_features(**tokens).pooler_output)
        return F.cross_entropy(scale * read @ vectors.T, which)

    fit("clip_texts", text, loss, steps, folder, decay=0.99, learning_rate=1e-3, matrix_rate=0.01)


def prompt(emoji: Emoji, rng: random.Random, is_held_out: bool) -> str:
    """What the text tower reads of an emoji; of one whose name is held out its keywords only."""
    if not is_held_out or not emoji.keywords:
        return captions.prompt(emoji, rng)
    return " ".join(rng.sample(emoji.keywords, min(len(emoji.keywords), rng.randint(1, 3))))


def varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moved, scaled, with other light and colours, blurred and with noise, each image in its own way; not mirrored."""
    count = len(images)

    def between(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    zoom, shift = between(0.87, 1.25).view(-1), 0.15 * (2 * torch.rand(count, 2, generator=generator) - 1)
    frame = torch.zeros(count, 2, 3)
    frame[:, 0, 0] = frame[:, 1, 1] = zoom
    frame[:, :, 2] = shift
    places = F.affine_grid(frame, list(images.shape), align_corners=False)
    images = F.grid_sample(images - 1, places, padding_mode="zeros", align_corners=False) + 1  # white outside
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * between(0.6, 1.4)
    images = images * between(0.75, 1.15) + between(-0.15, 0.15)
    blurred = F.avg_pool2d(F.pad(images, (2,) * 4, mode="replicate"), 5, stride=1)
    images = images.lerp(blurred, between(-0.6, 1).clamp(min=0))
    noise = torch.randn(images.shape, generator=generator) * between(-0.3, 0.5).clamp(min=0)
    return (images + noise).clamp(-1, 1)


def _sampled(
    pixels: torch.Tensor, looks: torch.Tensor, which: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Images of these emoji, half of them as a generator would leave them."""
    look = torch.randint(looks.shape[1], (len(which),), generator=generator)
    generated = looks[which, look].float() / 127.5 - 1
    is_generated = torch.rand(len(which), 1, 1, 1, generator=generator) < 0.5
    return torch.where(is_generated, generated, pixels[which])


def contrast(similarities: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """CLIP's loss; pairs of the same emoji in a batch are no counterexamples."""
    own = torch.arange(len(which))
    is_same = (which[:, None] == which[None, :]) & (own[:, None] != own[None, :])
    masked = similarities.masked_fill(is_same, -1e4)
    return (F.cross_entropy(masked, own) + F.cross_entropy(masked.T, own)) / 2


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors, dim=1)
