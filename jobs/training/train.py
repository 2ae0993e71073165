"""`python -m jobs.training.train`: train the tiny models that the package ships, from nothing, on this machine's CPUs.
Knows the stages' order and sizes and where the result goes; what is learned is in `stages`."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Literal

import ray_app
from actors import tiny
from jobs.training import emoji
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.generation.options import Options

SAMPLE = Path(ray_app.__file__).with_name("sample.json")
README = Path(__file__).parents[2] / "README.md"


@dataclasses.dataclass(frozen=True)
class Train(Options):
    """Train the tiny models on emoji and their names; the same command resumes where it was stopped.

    Needs: apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install 'proxyqueue[train]'
    """

    model_type: tuple[Literal["sdxl", "flux"], ...] = ("sdxl", "flux")
    """Which families' denoisers; what both need is trained in any case."""
    folder: str = "./tiny_training"
    """Folder of the checkpoints."""
    output: str = str(tiny.ROOT)
    """Where the finished pipelines go, one folder tiny_{model_type} each."""
    vae_steps: int = 700
    """Batches of 16 training images that the autoencoder learns from."""
    encoder_steps: int = 2000
    """Batches of 128 prompts that the text encoders learn from."""
    denoiser_steps: int = 3000
    """Batches of 32 prompts that the denoiser learns from."""
    limit: int | None = None
    """Learn only the first N training images, for a quick test."""
    seed: int = 0
    """Seed of the initial weights and of the prompts' wording."""
    threads: int | None = None
    """CPU threads; default all."""
    evaluate: bool = False
    """Train nothing; measure the shipped models. With both families the README's table and images are written too."""
    names: int = 200
    """Number of names that are generated to measure."""


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

    folders = {model_type: Path(options.folder) / model_type for model_type in ("sdxl", "flux")}
    print(f"{len(emojis)} training images; checkpoints in {options.folder}", flush=True)
    pixels = stages.pixels_of(emojis)
    vocabulary = captions.words(emojis)
    pipes = {kind: models.untrained(kind, vocabulary, options.seed) for kind in folders}
    sdxl, flux = pipes["sdxl"], pipes["flux"]
    # one family starts from what the other has learned: Flux's wider autoencoder learns faster, CLIP is SDXL's second
    stages.train_vae(flux, pixels, options.vae_steps, 16, folders["flux"])
    stages.fold(flux.vae, sdxl.vae, pixels)
    stages.train_vae(sdxl, pixels, options.vae_steps // 18, 16, folders["sdxl"])
    stages.train_clip_encoders(sdxl, emojis, pixels, options.encoder_steps, 128, folders["sdxl"])
    stages.share_words(sdxl, flux)
    stages.train_t5_encoder(flux, emojis, pixels, options.encoder_steps // 4, 128, folders["flux"])
    for kind in options.model_type:
        pipe = pipes[kind]
        latents = stages.latents_of(pipe.vae, pixels)
        embeddings = stages.embeddings_of(pipe, emojis, options.seed)
        train_denoiser = {"sdxl": stages.train_unet, "flux": stages.train_transformer}[kind]
        train_denoiser(pipe, latents, embeddings, options.denoiser_steps, 32, folders[kind])
        place = Path(options.output) / f"tiny_{kind}"
        shutil.rmtree(place, ignore_errors=True)
        pipe.to(torch.float16).save_pretrained(place)
        size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
        print(f"{kind}: {place}, {size / 1e6:.1f} MB", flush=True)


def _evaluate(options: Train, emojis: list[emoji.Emoji]) -> None:
    from jobs.training import evaluate

    shares: evaluate.Shares = {}
    for model_type in options.model_type:
        shares |= evaluate.shares_right(model_type, emojis, options.names, options.seed)
    print(evaluate.table(shares))
    if set(options.model_type) == {"sdxl", "flux"}:
        evaluate.plot(shares, README.parent / ".github" / "steps.png")
        evaluate.grid(README.parent / ".github" / "demo.png", _sample_prompts())
        evaluate.write_table(README, evaluate.table(shares))


def _sample_prompts() -> list[str]:
    """The first prompt of each of the demo's queries."""
    return [query["multi_gpt-3.5_opt"][0] for query in json.loads(SAMPLE.read_text())]


if __name__ == "__main__":
    sys.exit(run_module("jobs.training.train", Train, train, resumes=True))
