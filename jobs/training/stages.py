"""What the tiny models learn, in three stages: an autoencoder of images, encoders of prompts, a denoiser for both.
Knows images, captions and diffusers' parts; nothing of checkpoints' form, options or the shipped files."""

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
"""Pixels by which the autoencoder's images are moved about, so that it learns more than these images."""

HELD_OUT = 10
"""Every tenth image is kept from the autoencoder, to measure it on; the later stages learn all of them."""

BLUR = 1e-3
"""Weight of the latents' KL divergence: smooth latents are easier to denoise, but they have to hold every detail."""

CODE = 128
"""Numbers that sum an image up for the prompt encoders, its principal components."""

MARK = 64
"""Random numbers beside them, by which the encoders tell images apart that look alike."""

STRONGER = 1.25
"""See `_noise_like`."""

PHRASES = 16
"""Prompts of each image that the denoiser learns from."""


def pixels_of(emojis: Sequence[Emoji]) -> torch.Tensor:
    """All images, float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.stack([emoji.pixels for emoji in emojis])).permute(0, 3, 1, 2).float() / 127.5 - 1


def held_out(count: int) -> torch.Tensor:
    """Which of `count` images the autoencoder does not learn from, as bool (count,)."""
    return torch.arange(count) % HELD_OUT == HELD_OUT - 1


def train_vae(vae: Any, pixels: torch.Tensor, steps: int, batch: int, folder: Path) -> None:
    """Train the autoencoder on all images that are not held out."""
    known = pixels[~held_out(len(pixels))]

    def loss(generator: torch.Generator) -> torch.Tensor:
        targets = _varied(known[torch.randint(len(known), (batch,), generator=generator)], generator)
        encoded = vae.encode(targets).latent_dist
        latents = encoded.mean + encoded.std * torch.randn(encoded.mean.shape, generator=generator)
        error = vae.decode(latents).sample - targets
        spread = (encoded.mean**2 + encoded.var - 1 - encoded.logvar).mean()
        return 10 * error.square().mean() + BLUR * spread

    fit("vae", vae, loss, steps, folder, decay=0.99)


def _varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moved about, mirrored and with other colours: more images than these."""
    top, left = torch.randint(2 * MARGIN + 1, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    images = F.pad(images, (MARGIN,) * 4, value=1.0)[:, :, top : top + height, left : left + width]
    if torch.rand((), generator=generator) < 0.5:
        images = images.flip(3)
    if torch.rand((), generator=generator) < 0.5:
        images = images[:, torch.randperm(3, generator=generator)]
    return images


@torch.no_grad()
def set_scale(vae: Any, pixels: torch.Tensor) -> None:
    """Have the config of Flux's autoencoder say where the latents of these images have mean 0 and unit variance."""
    latents = _encoded(vae, pixels)
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def copy_vae(flux: Any, sdxl: Any, pixels: torch.Tensor) -> None:
    """Give SDXL the trained autoencoder of Flux; what SDXL has in addition takes the latents' mean out and in again.

    Its pipeline's own decoding knows no shift, and a mean per channel for four channels only.
    """
    sdxl.load_state_dict(flux.state_dict(), strict=False)
    sdxl.register_to_config(scaling_factor=flux.config.scaling_factor)
    mean = _encoded(flux, pixels).mean((0, 2, 3))
    for part, bias in ((sdxl.quant_conv, F.pad(-mean, (0, len(mean)))), (sdxl.post_quant_conv, mean)):
        part.weight.copy_(torch.eye(len(bias)).view(len(bias), len(bias), 1, 1))
        part.bias.copy_(bias)


@torch.no_grad()
def psnr(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """How near each image comes back from the autoencoder, in dB (n,)."""
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1) - part for part in pixels.split(64)]
    return -10 * (torch.cat(parts) / 2).square().mean((1, 2, 3)).log10()


def latents_of(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (n, c, h/4, w/4) as the denoiser sees them, of about unit variance."""
    return (_encoded(vae, pixels) - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def train_clip_encoders(
    pipe: Any, emojis: Sequence[Emoji], pixels: torch.Tensor, steps: int, batch: int, folder: Path
) -> None:
    """Train SDXL's two text encoders to tell from a prompt what its image looks like, as CLIP did."""
    code = image_code(pixels)
    encoders = torch.nn.ModuleDict({"first": pipe.text_encoder, "second": pipe.text_encoder_2})
    for name, encoder in list(encoders.items()):
        config: Any = encoder.config
        encoders[f"{name}_code"] = torch.nn.Linear(config.hidden_size, CODE + MARK)
    encoders["pooled_code"] = torch.nn.Linear(pipe.text_encoder_2.config.projection_dim, CODE + MARK)

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

    fit("encoders", encoders, loss, steps, folder, decay=0.99)


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
        {"t5": pipe.text_encoder_2, "code": torch.nn.Linear(pipe.text_encoder_2.config.d_model, CODE + MARK)}
    )

    def loss(generator: torch.Generator) -> torch.Tensor:
        which, prompts = _sample_prompts(emojis, batch, generator)
        ids = pipe.tokenizer_2(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        real = (ids != pipe.tokenizer_2.pad_token_id).unsqueeze(2)
        mean = (encoder["t5"](ids).last_hidden_state * real).sum(1) / real.sum(1)
        return (encoder["code"](mean) - code[which]).square().mean()

    fit("t5", encoder, loss, steps, folder, decay=0.99)


def image_code(pixels: torch.Tensor) -> torch.Tensor:
    """What prompt encoders learn to tell of each image, (n, CODE + MARK).

    The principal components of the coarse pixels, the strong ones damped (zeros if n < CODE), and its mark.
    """
    coarse = F.avg_pool2d(pixels, 4).flatten(1)
    centred = coarse - coarse.mean(0)
    left, strength, _ = torch.linalg.svd(centred, full_matrices=False)
    code = left[:, :CODE] * strength[:CODE].sqrt()
    marks = torch.randn(len(pixels), MARK, generator=torch.Generator().manual_seed(0))
    return torch.cat([F.pad(code / code.std(), (0, CODE - code.shape[1])), marks], 1)


@torch.no_grad()
def embeddings_of(pipe: Any, emojis: Sequence[Emoji], seed: int) -> dict[str, torch.Tensor]:
    """Prompts of every image as the pipeline encodes them, (n, PHRASES, …) by argument name, in float16."""
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
        noise = _noise_like(clean, generator)
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

    fit("unet", pipe.unet, loss, steps, folder, decay=0.995)


def train_transformer(
    pipe: Any, latents: torch.Tensor, embeddings: dict[str, torch.Tensor], steps: int, batch: int, folder: Path
) -> None:
    """Train Flux's denoiser to predict the straight way from image to noise."""
    count, channels, height, width = latents.shape
    packed = pipe._pack_latents(latents, count, channels, height, width)
    image_ids = pipe._prepare_latent_image_ids(count, height // 2, width // 2, "cpu", torch.float32)
    text_ids = torch.zeros(embeddings["prompt_embeds"].shape[2], 3)

    def loss(generator: torch.Generator) -> torch.Tensor:
        clean, embeds, pooled = _sample_batch(packed, embeddings, batch, generator)
        noise = _noise_like(clean, generator)
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

    fit("transformer", pipe.transformer, loss, steps, folder, decay=0.995)


def _sample_prompts(emojis: Sequence[Emoji], batch: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str]]:
    rng = random.Random(generator.initial_seed())
    which = torch.randint(len(emojis), (batch,), generator=generator)
    return which, [captions.prompt(emojis[index], rng) for index in which.tolist()]


def _noise_levels(batch: int, generator: torch.Generator) -> torch.Tensor:
    """Shares of the way to noise, the far ones more often: there it is decided what the image shows."""
    return torch.rand(batch, generator=generator).sqrt()


def _noise_like(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise up to `STRONGER` times as strong as the timestep says: what earlier steps got wrong is removed too."""
    strength = 1 + (STRONGER - 1) * torch.rand(len(clean), generator=generator)
    return torch.randn(clean.shape, generator=generator) * strength.view(-1, *[1] * (clean.ndim - 1))


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
