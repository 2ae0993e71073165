"""How good are the tiny models? Generates names and sentences and asks which training image is nearest.
Knows recipes and latents; nothing of training or of how figures are shown."""

import dataclasses
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors import pipelines, tiny
from actors.capture import StepCapture
from actors.recipe import Capture, Recipe, Snapshot
from jobs.training import captions, stages
from jobs.training.emoji import Emoji
from ray_app.generation import recipes
from ray_app.generation.options import Generate

STEPS = (1, 4, 8, 16, 32)
SNAPSHOTS: tuple[Snapshot, ...] = ("xt", "x0")
BATCH = 20
SENTENCES = Path(__file__).with_name("sentences.json")
"""Each with the names of the emoji that it may show, written down before any model was measured on them."""

Shares = dict[tuple[str, str, int], list[float]]
"""By family, snapshot and step: for each seed, the share of names for which the nearest image is the right one."""


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """How near images come back from the autoencoder, mean PSNR in dB."""

    held_out: float
    learned: float


class Measured:
    """A shipped tiny model, and every training image in its latents."""

    def __init__(self, model_type: str, emojis: Sequence[Emoji]) -> None:
        recipe = recipes.resolve(Generate(model_type=model_type, model_path=tiny.NAME, batch_size=BATCH))  # pyright: ignore[reportArgumentType]
        self.model_type, self.emojis = model_type, emojis
        self.family: Any = pipelines.load(recipe)
        self.known = stages.latents_of(self.family.pipe.vae, stages.pixels_of(emojis)).flatten(1)

    def shares_right(self, count: int, seeds: Sequence[int]) -> Shares:
        """Generate `count` names per seed in 32 steps and measure every step."""
        captures = [Capture(step, snapshot) for snapshot, step in itertools.product(SNAPSHOTS, STEPS)]
        shares: Shares = {(self.model_type, one.snapshot, one.step): [] for one in captures}
        for seed in seeds:
            places = names_chosen(self.emojis, count, seed)
            names = [captions.spoken(self.emojis[place].name) for place in places]
            nearest = self._nearest(names, [seed + place for place in places], captures)
            for one in captures:
                hits = sum(found == place for found, place in zip(nearest[one], places, strict=True))
                shares[self.model_type, one.snapshot, one.step].append(hits / len(places))
        return shares

    def sentences_shown(self, seeds: Sequence[int]) -> list[dict[str, str]]:
        """For each seed, what the image at the last step shows by sentence: the nearest image's name."""
        sentences, last = list(read_sentences()), Capture(max(STEPS))
        found = [self._nearest(sentences, [seed] * len(sentences), [last])[last] for seed in seeds]
        return [
            {sentence: self.emojis[place].name for sentence, place in zip(sentences, places, strict=True)}
            for places in found
        ]

    def sharpness(self) -> Sharpness:
        """Of its autoencoder."""
        vae, pixels = self.family.pipe.vae, stages.pixels_of(self.emojis)
        with torch.no_grad():
            each, held_out = stages.psnr(vae, pixels), stages.held_out(len(pixels))
        return Sharpness(each[held_out].mean().item(), each[~held_out].mean().item())

    def _nearest(
        self, prompts: Sequence[str], seeds: Sequence[int], captures: Sequence[Capture]
    ) -> dict[Capture, list[int]]:
        """Places of the nearest training images: of least mean square distance in the autoencoder's latents."""
        nearest: dict[Capture, list[int]] = {one: [] for one in captures}
        for batch in _batches(list(zip(prompts, seeds, strict=True))):
            embeddings = [self.family.encode(prompt) for prompt, _ in batch]
            with StepCapture(list(captures), max(STEPS)).attached(self.family.pipe) as capture:
                pipelines.denoise(self.family, embeddings, [seed for _, seed in batch], max(STEPS), capture)
            for one in captures:
                latents = _grid(self.family, capture.latents[one]).flatten(1)
                nearest[one] += torch.cdist(latents, self.known).argmin(1).tolist()
        return nearest


def names_chosen(emojis: Sequence[Emoji], count: int, seed: int) -> list[int]:
    """Places of the emoji that are generated, the same for the same seed."""
    return sorted(random.Random(seed).sample(range(len(emojis)), min(count, len(emojis))))


def read_sentences() -> dict[str, list[str]]:
    """The names that each sentence may show."""
    return json.loads(SENTENCES.read_text(encoding="utf-8"))


def share_shown(shown: dict[str, str]) -> float:
    """The share of sentences whose image shows what they name."""
    accepted = read_sentences()
    return sum(name in accepted[sentence] for sentence, name in shown.items()) / len(shown)


def _batches(items: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _grid(family: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder has them, (n, c, h, w); Flux packs them into rows."""
    if latents.ndim == 4:
        return latents
    recipe: Recipe = family.recipe
    return family.pipe._unpack_latents(latents, recipe.height, recipe.width, family.pipe.vae_scale_factor)
