"""How many steps are enough for the tiny models? Draws names they know and asks which training picture is nearest.
Knows recipes, latents and README's table; nothing of training."""

import itertools
import random
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors import pipelines, tiny
from actors.capture import StepCapture
from actors.generator import ImageGenerator
from actors.recipe import Capture, Recipe, Snapshot
from jobs.training import captions, stages
from jobs.training.emoji import Emoji
from ray_app.generation import recipes
from ray_app.generation.options import Generate

STEPS = (1, 4, 8, 16, 32)
SNAPSHOTS: tuple[Snapshot, ...] = ("xt", "x0")
BATCH = 20

Shares = dict[tuple[str, str, int], float]
"""By family, snapshot and step: the share of names for which the nearest training picture is the right one."""


def names_drawn(emojis: Sequence[Emoji], count: int, seed: int) -> list[int]:
    """Places of the emoji that are drawn, the same for the same seed."""
    return sorted(random.Random(seed).sample(range(len(emojis)), min(count, len(emojis))))


def shares_right(model_type: str, emojis: Sequence[Emoji], count: int = 200, seed: int = 0) -> Shares:
    """Draw `count` names in 32 steps and measure every step.

    Near means a small mean square distance in the autoencoder's latents, with no decoding.
    """
    recipe = recipes.resolve(Generate(model_type=model_type, model_path=tiny.NAME, batch_size=BATCH))  # pyright: ignore[reportArgumentType]
    family = pipelines.load(recipe)
    known = stages.latents_of(family.pipe.vae, stages.pixels_of(emojis)).flatten(1)
    captures = [Capture(step, snapshot) for snapshot, step in itertools.product(SNAPSHOTS, STEPS)]
    right = dict.fromkeys(captures, 0)
    places = names_drawn(emojis, count, seed)
    for start in range(0, len(places), BATCH):
        batch = places[start : start + BATCH]
        embeddings = [family.encode(captions.spoken(emojis[place].name)) for place in batch]
        with StepCapture(captures, max(STEPS)).attached(family.pipe) as capture:
            pipelines.denoise(family, embeddings, [seed + place for place in batch], max(STEPS), capture)
        for one in captures:
            nearest = torch.cdist(_grid(family, capture.latents[one]).flatten(1), known).argmin(1)
            right[one] += int((nearest == torch.tensor(batch)).sum())
    return {(model_type, one.snapshot, one.step): hits / len(places) for one, hits in right.items()}


def table(shares: Shares) -> str:
    """The shares as README's table."""
    families = sorted({key[0] for key in shares}, reverse=True)
    columns = list(itertools.product(families, SNAPSHOTS))
    names = {"sdxl": "SDXL", "flux": "Flux"}
    lines = [f"| step | {' | '.join(f'tiny {names[family]}, {snapshot}' for family, snapshot in columns)} |"]
    lines.append("|---|" + "---|" * len(columns))
    for step in STEPS:
        cells = [f"{shares[family, snapshot, step] * 100:.1f} %" for family, snapshot in columns]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(shares: Shares, file: Path) -> None:
    """A line for each family and snapshot, over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    colours = {"sdxl": "tab:blue", "flux": "tab:orange"}
    for family in sorted({key[0] for key in shares}, reverse=True):
        for snapshot, style in (("x0", "-o"), ("xt", "--s")):
            heights = [shares[family, snapshot, step] * 100 for step in STEPS]
            axes.plot(range(len(STEPS)), heights, style, color=colours[family], label=f"tiny {family}, {snapshot}")
    axes.set_xticks(range(len(STEPS)), [str(step) for step in STEPS])
    axes.set(xlabel="step of 32", ylabel="nearest picture is the right one, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def grid(file: Path, prompts: Sequence[str]) -> None:
    """Prompts by steps, drawn by both families, with captions."""
    from PIL import Image, ImageDraw, ImageFont

    size, gap, left, top = tiny.SIZE, 4, 250, 34
    families = ("sdxl", "flux")
    half = len(STEPS) * (size + gap)
    sheet = Image.new("RGB", (left + len(families) * (half + 3 * gap), top + len(prompts) * (size + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, model_type in enumerate(families):
        pen.text((left + number * (half + 3 * gap), 0), f"{model_type}, as of step", "black", font)
        x = left + number * (half + 3 * gap)
        for place, step in enumerate(STEPS):
            pen.text((x + place * (size + gap), top - 18), str(step), "black", font)
        requested = Generate(model_type=model_type, model_path=tiny.NAME, batch_size=len(prompts))
        generator = ImageGenerator(recipes.resolve(requested), [])
        drawn = generator.pixels(list(prompts), [0] * len(prompts), [Capture(step) for step in STEPS])
        for place, step in enumerate(STEPS):
            for row, picture in enumerate(drawn[Capture(step)]):
                sheet.paste(Image.fromarray(picture), (x + place * (size + gap), top + row * (size + gap)))
    for row, prompt in enumerate(prompts):
        lines = textwrap.wrap(prompt, 34)
        middle = top + row * (size + gap) + size // 2 - 9 * len(lines)
        pen.multiline_text((8, middle), "\n".join(lines), "black", font)
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(file, optimize=True)


def write_table(readme: Path, text: str) -> None:
    """Put the table between README's marks."""
    old = readme.read_text()
    new = re.sub(r"(<!-- steps -->\n).*?(<!-- end -->)", lambda marks: f"{marks[1]}{text}\n{marks[2]}", old, flags=re.S)
    readme.write_text(new)


def _grid(family: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder has them, (n, c, h, w); Flux packs them into rows."""
    if latents.ndim == 4:
        return latents
    recipe: Recipe = family.recipe
    return family.pipe._unpack_latents(latents, recipe.height, recipe.width, family.pipe.vae_scale_factor)
