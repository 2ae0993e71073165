"""What the tiny models learn, in three stages: an autoencoder of images, encoders of prompts, a denoiser for both.
Knows training images, captions and diffusers' parts; nothing of checkpoints, options or the shipped files."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from jobs.training import captions
from jobs.training.emoji import Emoji
from jobs.training.fitting import fit

MARGIN = 6
"""Pixels by which the autoencoder's training images are shifted, so that it learns more than these images."""

BLUR = {"sdxl": 2e-4, "flux": 1e-3}
"""Weight of the latents' KL divergence: smooth latents are easier to denoise, but four channels have to hold it all."""

CODE = 128
"""Numbers that summarize a training image for the prompt encoders: its principal components."""

RATE = 1.5e-3
"""Learning rate of the denoisers."""

PHRASES = 8
"""Prompts per training image that the denoiser learns from."""


def pixels_of(emojis: Sequence[Emoji]) -> torch.Tensor:
    """All training images, float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.stack([emoji.pixels for emoji in emojis])).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(pipe: Any, pixels: torch.Tensor, steps: int, batch: int, folder: Path) -> None:
    """Train the autoencoder, then set its config's scale to what the latents of these images measure."""
    vae = pipe.vae
    blur = BLUR["flux" if hasattr(pipe, "transformer") else "sdxl"]

    def loss(generator: torch.Generator) -> torch.Tensor:
        targets = pixels[torch.randint(len(pixels), (batch,), generator=generator)]
        top, left = torch.randint(2 * MARGIN + 1, (2,), generator=generator).tolist()
        height, width = targets.shape[2:]
        targets = F.pad(targets, (MARGIN,) * 4, value=1.0)[:, :, top : top + height, left : left + width]
        if torch.rand((), generator=generator) < 0.5:
            targets = targets.flip(3)
        encoded = vae.encode(targets).latent_dist
        latents = encoded.mean + encoded.std * torch.randn(encoded.mean.shape, generator=generator)
        error = vae.decode(latents).sample - targets
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        spread = (encoded.mean**2 + encoded.var - 1 - encoded.logvar).mean()
        return error.abs().mean() + edges / 2 + _hue_error(error) + blur * spread

    fit("vae", vae, loss, steps, 2e-3, folder, decay=0.99)
    latents = _encoded(vae, pixels)
    if vae.config.latent_channels == 4:
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=1.0)
    else:
        vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def fold(wide: Any, narrow: Any, pixels: torch.Tensor) -> None:
    """Start an autoencoder of few channels from a trained one of many: its main components, at unit variance."""
    few, many = narrow.config.latent_channels, wide.config.latent_channels
    latents = _encoded(wide, pixels).transpose(0, 1).flatten(1)
    mean = latents.mean(1)
    strength, directions = torch.linalg.eigh(torch.cov(latents))
    strength, directions = strength[-few:].sqrt(), directions[:, -few:]
    weights = {name: value.clone() for name, value in wide.state_dict().items()}
    into, out = directions.T / strength.unsqueeze(1), directions * strength
    last, first = "encoder.conv_out", "decoder.conv_in"
    means = torch.einsum("fm,mchw->fchw", into, weights[f"{last}.weight"][:many])
    weights[f"{last}.weight"] = torch.cat([means, torch.zeros_like(means)])
    bias = into @ (weights[f"{last}.bias"][:many] - mean)
    weights[f"{last}.bias"] = torch.cat([bias, torch.full_like(bias, -5.0)])  # log of the variance
    weights[f"{first}.bias"] += weights[f"{first}.weight"].sum((2, 3)) @ mean
    weights[f"{first}.weight"] = torch.einsum("cmhw,mf->cfhw", weights[f"{first}.weight"], out)
    for name in ("quant_conv", "post_quant_conv"):
        size = len(getattr(narrow, name).bias)
        weights |= {f"{name}.weight": torch.eye(size).view(size, size, 1, 1), f"{name}.bias": torch.zeros(size)}
    narrow.load_state_dict(weights)


def latents_of(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (n, c, h/4, w/4) as the denoiser sees them, of about unit variance."""
    latents, config = _encoded(vae, pixels), vae.config
    if config.latents_mean is not None:
        mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (config.latents_mean, config.latents_std))
        return (latents - mean) / std * config.scaling_factor
    return (latents - config.shift_factor) * config.scaling_factor


def train_clip_encoders(
    pipe: Any, emojis: Sequence[Emoji], pixels: torch.Tensor, steps: int, batch: int, folder: Path
) -> None:
    """Train SDXL's two text encoders to predict from a prompt what its training image looks like, as CLIP did."""
    code = image_code(pixels)
    encoders = torch.nn.ModuleDict({"first": pipe.text_encoder, "second": pipe.text_encoder_2})
    for name, encoder in list(encoders.items()):
        config: Any = encoder.config
        encoders[f"{name}_code"] = torch.nn.Linear(config.hidden_size, CODE)
    encoders["pooled_code"] = torch.nn.Linear(pipe.text_encoder_2.config.projection_dim, CODE)

    def loss(generator: torch.Generator) -> torch.Tensor:
        which, prompts = _sample_prompts(emojis, batch, generator)
        ids, ends = _clip_ids(pipe.tokenizer, prompts)
        rows = torch.arange(batch)
        told = []
        for name in ("first", "second"):
            outputs = encoders[name](ids, output_hidden_states=True)
            told.append(encoders[f"{name}_code"](outputs.hidden_states[-2][rows, ends]))  # the layer the pipeline takes
        told.append(encoders["pooled_code"](outputs.text_embeds))
        return torch.stack([(one - code[which]).square().mean() for one in told]).mean()

    fit("encoders", encoders, loss, steps, 2e-3, folder, decay=0.995)


@torch.no_grad()
def share_words(sdxl: Any, flux: Any) -> None:
    """Start Flux's encoders from SDXL's trained ones: CLIP is its second one, and T5's words begin as CLIP's."""
    flux.text_encoder.load_state_dict(sdxl.text_encoder_2.state_dict(), strict=False)  # all but the projection
    known, vectors = sdxl.tokenizer_2.get_vocab(), sdxl.text_encoder_2.get_input_embeddings().weight
    words = flux.text_encoder_2.get_input_embeddings().weight
    scale = vectors.std() / words.std()
    words *= scale
    for name, weight in flux.text_encoder_2.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight *= scale  # else the layers' initial noise would drown the words
    for piece, index in flux.tokenizer_2.get_vocab().items():
        place = known.get(piece.removeprefix("▁").lower() + "</w>")
        if place is not None:
            words[index] = vectors[place]


def train_t5_encoder(
    pipe: Any, emojis: Sequence[Emoji], pixels: torch.Tensor, steps: int, batch: int, folder: Path
) -> None:
    """The same for Flux's T5, from the mean over the prompt's tokens."""
    code = image_code(pixels)
    encoder = torch.nn.ModuleDict(
        {"t5": pipe.text_encoder_2, "code": torch.nn.Linear(pipe.text_encoder_2.config.d_model, CODE)}
    )

    def loss(generator: torch.Generator) -> torch.Tensor:
        which, prompts = _sample_prompts(emojis, batch, generator)
        ids = pipe.tokenizer_2(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        real = (ids != pipe.tokenizer_2.pad_token_id).unsqueeze(2)
        mean = (encoder["t5"](ids).last_hidden_state * real).sum(1) / real.sum(1)
        return (encoder["code"](mean) - code[which]).square().mean()

    fit("t5", encoder, loss, steps, 2e-3, folder, decay=0.99)


def image_code(pixels: torch.Tensor) -> torch.Tensor:
    """The principal components of the images' coarse pixels (n, CODE), the strong ones damped; zeros if n < CODE."""
    coarse = F.avg_pool2d(pixels, 4).flatten(1)
    centred = coarse - coarse.mean(0)
    left, strength, _ = torch.linalg.svd(centred, full_matrices=False)
    code = left[:, :CODE] * strength[:CODE].sqrt()
    return F.pad(code / code.std(), (0, CODE - code.shape[1]))


@torch.no_grad()
def embeddings_of(pipe: Any, emojis: Sequence[Emoji], seed: int) -> dict[str, torch.Tensor]:
    """Prompts of every training image as the pipeline encodes them, (n, PHRASES, …) by argument name, in float16."""
    rng = random.Random(seed)
    parts: dict[str, list[torch.Tensor]] = {"prompt_embeds": [], "pooled_prompt_embeds": []}
    for emoji in emojis:
        bare = captions.spoken(emoji.name)
        prompts = [bare, bare.capitalize(), *(captions.prompt(emoji, rng) for _ in range(PHRASES - 2))]
        if hasattr(pipe, "transformer"):
            embeds, pooled, _ = pipe.encode_prompt(prompts, None, max_sequence_length=pipe.tokenizer_2.model_max_length)
        else:
            embeds, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        parts["prompt_embeds"].append(embeds.half())
        parts["pooled_prompt_embeds"].append(pooled.half())
    return {name: torch.stack(tensors) for name, tensors in parts.items()}


def train_unet(
    pipe: Any, latents: torch.Tensor, embeddings: dict[str, torch.Tensor], steps: int, batch: int, folder: Path
) -> None:
    """Train SDXL's denoiser to predict v at every timestep of the scheduler."""
    cumulated = pipe.scheduler.alphas_cumprod
    size = latents.shape[-1] * 4
    time_ids = torch.tensor([[size, size, 0, 0, size, size]], dtype=torch.float32).expand(batch, 6)

    def loss(generator: torch.Generator) -> torch.Tensor:
        clean, embeds, pooled = _sample_batch(latents, embeddings, batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = (_noise_levels(batch, generator) * len(cumulated)).long().clamp(max=len(cumulated) - 1)
        signal = cumulated[timesteps].view(-1, 1, 1, 1)
        predicted = pipe.unet(
            signal.sqrt() * clean + (1 - signal).sqrt() * noise,
            timesteps,
            encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
            return_dict=False,
        )[0]
        return F.mse_loss(predicted, signal.sqrt() * noise - (1 - signal).sqrt() * clean)

    fit("unet", pipe.unet, loss, steps, RATE, folder)


def train_transformer(
    pipe: Any, latents: torch.Tensor, embeddings: dict[str, torch.Tensor], steps: int, batch: int, folder: Path
) -> None:
    """Train Flux's denoiser to predict the straight path from image to noise."""
    count, channels, height, width = latents.shape
    packed = pipe._pack_latents(latents, count, channels, height, width)
    image_ids = pipe._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32)
    text_ids = torch.zeros(embeddings["prompt_embeds"].shape[2], 3)

    def loss(generator: torch.Generator) -> torch.Tensor:
        clean, embeds, pooled = _sample_batch(packed, embeddings, batch, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = _noise_levels(batch, generator)
        mixed = torch.lerp(clean, noise, sigma.view(-1, 1, 1))
        predicted = pipe.transformer(
            hidden_states=mixed,
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return F.mse_loss(predicted, noise - clean)

    fit("transformer", pipe.transformer, loss, steps, RATE, folder)


def _sample_prompts(emojis: Sequence[Emoji], batch: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    rng = random.Random(generator.initial_seed())
    which = torch.randint(len(emojis), (batch,), generator=generator)
    return which, [captions.prompt(emojis[index], rng) for index in which.tolist()]


def _hue_error(error: torch.Tensor) -> torch.Tensor:
    """How wrong brightness, blue against yellow and red against green are, at low resolution.

    Most of the training images are yellow or grey: without this, red and green would stay brown for long.
    """
    red, green, blue = F.avg_pool2d(error, 4).unbind(1)
    yellow = (red + green) / 2
    return (red + green + blue).abs().mean() / 2 + 2 * (blue - yellow).abs().mean() + 6 * (red - green).abs().mean()


def _noise_levels(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Noise levels as shares of the path to noise, high ones more often: they decide what the image shows."""
    return torch.rand(batch, generator=generator).sqrt()


def _sample_batch(
    latents: torch.Tensor, embeddings: dict[str, torch.Tensor], batch: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    which = torch.randint(len(latents), (batch,), generator=generator)
    phrase = torch.randint(PHRASES, (batch,), generator=generator)
    embeds, pooled = (embeddings[name][which, phrase].float() for name in ("prompt_embeds", "pooled_prompt_embeds"))
    return latents[which], embeds, pooled


@torch.no_grad()
def _encoded(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(64)])


def _clip_ids(tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, as few as the longest prompt has since what follows an end changes nothing before it, and the ends."""
    inputs = tokenizer(prompts, padding="longest", truncation=True, return_tensors="pt")
    return inputs.input_ids, inputs.attention_mask.sum(1) - 1
