"""`python -m jobs.training.train_clip`: train the tiny CLIP that the package ships, or measure it.
Knows sizes and where the result goes; what is learned is in `clip`. Needs the tiny SDXL's trained autoencoder."""

import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from actors import tiny
from jobs.training import emoji
from jobs.training.emoji import Emoji
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.generation.options import Options

PAGE = Path(__file__).parents[2] / "docs" / "tiny-models.md"


@dataclasses.dataclass(frozen=True)
class TrainClip(Options):
    """Train the tiny CLIP on emoji and their names; the same command resumes where it was stopped.

    Needs: apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install 'proxyqueue[train]'
    """

    folder: str = "./tiny_training"
    """Checkpoints are saved here."""
    output: str = str(tiny.ROOT)
    """Where the finished model goes, in a folder tiny_clip."""
    steps: int = 2000
    """Batches of 64 images with a prompt each to learn from."""
    text_steps: int = 500
    """Batches of 128 prompts that the text tower then learns from alone."""
    limit: int | None = None
    """Learn the first N images only, for a try."""
    seed: int = 0
    """Seed of the initial weights."""
    threads: int | None = None
    """CPU threads; default all."""
    evaluate: bool = False
    """Train nothing; measure the shipped model, and write its figures to docs/tiny-models.md."""


def train_clip(options: TrainClip) -> int:
    """Train, or measure; the exit code."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    if options.evaluate:
        _evaluate()
    else:
        _train(options, emoji.read()[: options.limit])
    return OK


def _train(options: TrainClip, emojis: Sequence[Emoji]) -> None:
    from diffusers import AutoencoderKL

    from jobs.training import captions, clip, stages

    folder, place = Path(options.folder), Path(options.output) / "tiny_clip"
    print(f"{len(emojis)} images; checkpoints in {folder}", flush=True)
    pixels = stages.pixels_of(emojis)
    vae = AutoencoderKL.from_pretrained(tiny.folder("sdxl") / "vae").float()
    looks = clip.generated_looks(vae, pixels, options.seed)
    model, tokenizer = clip.untrained(captions.words(emojis), options.seed)
    clip.train(model, tokenizer, emojis, pixels, looks, options.steps, 64, folder)
    clip.train_texts(model, tokenizer, emojis, pixels, options.text_steps, 128, folder)
    shutil.rmtree(place, ignore_errors=True)
    clip.save(model, tokenizer, place)
    size = sum(file.stat().st_size for file in place.iterdir())
    print(f"{place}: {size / 1e6:.1f} MB", flush=True)


def _evaluate() -> None:
    from jobs.training import measure_clip, report

    table = measure_clip.table_of(measure_clip.measure())
    print(table)
    report.write_table(PAGE, "clip", table)


if __name__ == "__main__":
    sys.exit(run_module("jobs.training.train_clip", TrainClip, train_clip, resumes=True))
