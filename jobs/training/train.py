"""`python -m jobs.training.train`: train the tiny models that the package ships, from nothing, on this machine's CPUs.
Knows the stages' order and sizes and where the result goes; what is learned is in `stages`."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Literal

from actors import tiny
from jobs.illustrations import record
from jobs.training import emoji
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.generation.options import Options

README = record.ROOT / "README.md"
PAGE = README.parent / "docs" / "tiny-models.md"
PLOT = "steps.png"
PLOT_SOURCES = ("actors/tiny_sdxl", "actors/tiny_flux", "jobs/training/evaluate.py", "jobs/training/report.py")
SEEDS = 3
"""With how many seeds the models are measured."""


@dataclasses.dataclass(frozen=True)
class Train(Options):
    """Train the tiny models on emoji and their names; the same command resumes where it was stopped.

    Needs: apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install 'proxyqueue[train]'
    """

    model_type: tuple[Literal["sdxl", "flux"], ...] = ("sdxl", "flux")
    """Which families' denoisers; what both need is trained in any case."""
    folder: str = "./tiny_training"
    """Checkpoints are saved here."""
    output: str = str(tiny.ROOT)
    """Where the finished pipelines go, one folder tiny_{model_type} each."""
    vae_steps: int = 2600
    """Batches of 4 images that the autoencoder learns from."""
    encoder_steps: int = 2000
    """Batches of 64 prompts that the text encoders learn from."""
    unet_steps: int = 7000
    """Batches of 32 prompts that SDXL's denoiser learns from."""
    transformer_steps: int = 14000
    """Batches of 32 prompts that Flux's denoiser learns from."""
    limit: int | None = None
    """Learn the first N images only, for a try."""
    seed: int = 0
    """Seed of the initial weights and of the prompts' wording."""
    threads: int | None = None
    """CPU threads; default all."""
    evaluate: bool = False
    """Train nothing; measure the shipped models. With both families README's table and the plot are written too."""
    names: int = 200
    """Names that are generated to measure."""


def train(options: Train) -> int:
    """Train what is requested, or measure; the exit code."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    emojis = emoji.read()[: options.limit]
    if options.evaluate:
        _evaluate(options, emojis)
        return OK
    _train(options, emojis)
    return OK


def _train(options: Train, emojis: list[emoji.Emoji]) -> None:
    import torch

    from jobs.training import captions, models, stages

    folder = Path(options.folder)
    print(f"{len(emojis)} images; checkpoints in {folder}", flush=True)
    pixels = stages.pixels_of(emojis)
    vocabulary = captions.words(emojis)
    pipes = {kind: models.untrained(kind, vocabulary, options.seed) for kind in ("sdxl", "flux")}
    sdxl, flux = pipes["sdxl"], pipes["flux"]
    stages.train_vae(flux.vae, pixels, options.vae_steps, 4, folder)
    stages.set_scale(flux.vae, pixels)
    stages.copy_vae(flux.vae, sdxl.vae, pixels)
    stages.train_clip_encoders(sdxl, emojis, pixels, options.encoder_steps, 64, folder)
    stages.share_words(sdxl, flux)
    for kind in options.model_type:
        if kind == "flux":
            stages.train_t5_encoder(flux, emojis, pixels, options.encoder_steps // 4, 64, folder)
        pipe = pipes[kind]
        latents = stages.latents_of(pipe.vae, pixels)
        embeddings = stages.embeddings_of(pipe, emojis, options.seed)
        if kind == "sdxl":
            stages.train_unet(pipe, latents, embeddings, options.unet_steps, 32, folder)
        else:
            stages.train_transformer(pipe, latents, embeddings, options.transformer_steps, 32, folder)
        place = Path(options.output) / f"tiny_{kind}"
        shutil.rmtree(place, ignore_errors=True)
        pipe.to(torch.float16).save_pretrained(place)
        size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
        print(f"{kind}: {place}, {size / 1e6:.1f} MB", flush=True)


def _evaluate(options: Train, emojis: list[emoji.Emoji]) -> None:
    from jobs.training import evaluate, report

    seeds = range(options.seed, options.seed + SEEDS)
    shares: evaluate.Shares = {}
    sentences: dict[str, list[float]] = {}
    sharpness: dict[str, evaluate.Sharpness] = {}
    for model_type in options.model_type:
        measured = evaluate.Measured(model_type, emojis)
        shares |= measured.shares_right(options.names, seeds)
        shown = measured.sentences_shown(seeds)
        sentences[model_type] = [evaluate.share_shown(one) for one in shown]
        sharpness[model_type] = measured.sharpness()
        for sentence, name in shown[0].items():
            print(f"{model_type}: {sentence} -> {name}")
    steps, quality = report.steps_table(shares), report.quality_table(shares, sentences, sharpness)
    print(f"{steps}\n\n{quality}")
    if set(options.model_type) == {"sdxl", "flux"}:
        report.plot(shares, record.FOLDER / PLOT)
        record.write(PLOT, PLOT_SOURCES)
        report.write_table(README, "steps", steps)
        report.write_table(PAGE, "quality", quality)


if __name__ == "__main__":
    sys.exit(run_module("jobs.training.train", Train, train, resumes=True))
