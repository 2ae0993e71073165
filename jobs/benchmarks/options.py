"""The flags of the benchmarks: speed, scale, evaluate.
Knows names and defaults; nothing of how anything is measured."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from actors import random_weights, tiny
from ray_app.arguments import Options
from ray_app.errors import InputRefused
from ray_app.flags import DEFAULT_MODEL_TYPE, DEFAULT_STEPS, ModelType
from ray_app.generation.options import Generate, parse_steps

VARIANTS = ("separate", "callback", "ray_data", "proxyqueue", "limit")
"""In the order of the first round."""

Variant = Literal["separate", "callback", "ray_data", "proxyqueue", "limit"]
Optimization = Literal[
    "batch_of_one", "usual_malloc", "vae_bfloat16", "vae_float16", "channels_last", "fused_qkv", "compiled"
]
Part = Literal["images", "plan", "resume", "index"]


@dataclasses.dataclass(frozen=True)
class Speed(Options):
    """Compare proxyqueue with separate runs, scripts and the bare model: same prompts, same hardware.

    All variants are measured in one run, interleaved, in an order that rotates each round; ratios are medians of the
    rounds' own ratios. On CPUs nothing else should be running.

    Example: python -m jobs.benchmarks.speed --model mid --rounds 5

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    model: Literal["tiny", "mid", "full"] = "mid"
    """tiny; mid, a 33 M UNet at 256 px; full, the real architectures with random weights, on a GPU only."""
    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
    variants: tuple[Variant, ...] = VARIANTS
    """The variants to measure."""
    levers: tuple[Optimization, ...] = ()
    """Also measure the bare pipeline ("limit") with one optimization each: the effect of that optimization."""
    rounds: int = 5
    """Number of measurements per variant."""
    prompts: int = 42
    """Slots to generate; about 5 % of them duplicate another slot."""
    json_file: str | None = None
    """Annotations whose first prompts are used; default synthetic prompts with the same share of duplicates."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """Field of the annotations that holds a query's list of prompts, of which the first five are taken."""
    max_inference_steps: int = 32
    """Denoising steps of the one run."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps to save, 1-based, or shares."""
    height: int | None = None
    """Pixels; the model's own default. The real SDXL targets are for 512."""
    width: int | None = None
    """Pixels; likewise."""
    batch_size: int | None = None
    """Prompts that proxyqueue and the bare model denoise together. Default depends on the model."""
    num_workers: str | None = None
    """Actors of proxyqueue and ray_data, as in generate; default one per core; on a GPU, one in total."""
    vae_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """VAE dtype of proxyqueue and the bare model, as in generate."""
    compile: bool = False
    """Compile the model with torch.compile, as in generate; for all variants, before the clock starts."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cpu for tiny and mid, cuda for full."""
    arrangement: Literal["auto", "processes", "threads"] = "auto"
    """How the other variants run on CPUs: one 1-thread process per core, one process with all threads, the faster."""
    work_dir: str | None = None
    """Where images and outputs go, one folder per round and variant; default a temporary folder, removed at the end."""
    output: str = "speed.json"
    """File for everything that was measured, as JSON; the tables are printed."""

    def steps(self) -> list[int]:
        """The steps to save."""
        return parse_steps(self.save_steps, self.max_inference_steps)

    def generate(self, json_file: Path, output: Path) -> Generate:
        """The options that proxyqueue runs with."""
        shared = ("model_type", "max_inference_steps", "save_steps", "height", "width", "batch_size", "device")
        shared += ("vae_dtype", "compile")
        requested = Generate(
            model_path=self.model,
            json_file=str(json_file),
            output_base_path=str(output),
            num_prompts=1,
            **{name: getattr(self, name) for name in shared},
        )
        one_gpu = "1" if requested.target_device() == "cuda" else None  # like the other variants
        return dataclasses.replace(requested, num_workers=self.num_workers or one_gpu)

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        _at_least(self, rounds=1, prompts=1)
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise InputRefused("--variants: name at least one of them, each once")
        if self.levers and ("limit" not in self.variants or len(set(self.levers)) < len(self.levers)):
            raise InputRefused("--levers: name each once, and include limit in --variants: they are compared with it")
        if self.model == random_weights.FULL and self.device == "cpu":
            raise InputRefused("--model full: is for GPUs; on CPUs use mid")
        assert self.model in (tiny.NAME, *random_weights.NAMES)


@dataclasses.dataclass(frozen=True)
class Scale(Options):
    """Measure what the queue itself costs: images that cost nothing, a million slots, five million rows.

    Each measurement runs in a fresh process. The defaults write about 40 GB to --work_dir.

    Example: python -m jobs.benchmarks.scale --parts plan index --plan_slots 100000 --rows 500000

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    parts: tuple[Part, ...] = ("images", "plan", "resume", "index")
    """images: random bytes as images through Ray, writer and index; plan: with no images; resume: with half of them.
    index: the plan's read, a count by step and one query's rows, before and after compact."""
    slots: tuple[int, ...] = (10_000, 100_000)
    """Slots of images, one run per number."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps per slot, and so images; also of the index."""
    image_bytes: int = 60_000
    """Size of an image; of 512 px as jpg it is about 60 kB."""
    batch_size: int = 16
    """Slots per batch of an actor."""
    num_workers: str | None = None
    """Actors, as in generate."""
    plan_slots: int = 1_000_000
    """Slots of plan."""
    resume_slots: int = 1_000_000
    """Slots of resume; half of them have a row and a file of one byte."""
    rows: int = 5_000_000
    """Rows of the index."""
    rows_a_part: int = 5_000
    """Rows per part before compact; a run commits as many, or every five seconds."""
    work_dir: str | None = None
    """Where everything is written; default a temporary folder. Measured outputs are removed afterwards."""
    output: str = "scale.json"
    """File for everything that was measured, as JSON; the figures are printed."""

    def steps(self) -> list[int]:
        """The steps of each slot."""
        return parse_steps(self.save_steps, Generate.max_inference_steps)

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        least = {"image_bytes": 1, "batch_size": 1, "plan_slots": 1, "resume_slots": 2, "rows": 1, "rows_a_part": 1}
        _at_least(self, **least)
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise InputRefused("--parts: name at least one of them, each once")
        if any(slots < 1 for slots in self.slots):
            raise InputRefused(f"--slots {min(self.slots)}: must be at least 1")
        self.steps()


@dataclasses.dataclass(frozen=True)
class EvaluateScale(Options):
    """Measure ranking a gallery by text and proxies: random vectors of CIRCO test's size, every step and weight.

    Runs in a fresh process. Nothing is read, and only --output written.

    Example: python -m jobs.benchmarks.evaluate --controls

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    queries: int = 800
    """Queries; CIRCO's test set has 800."""
    images: int = 123_403
    """Images of the gallery; COCO 2017 unlabeled has 123,403."""
    width: int = 768
    """Values of a vector; CLIP ViT-L/14 has 768."""
    steps: int = 5
    """Steps, each with its own proxies."""
    weights: int = 11
    """Weights of text and proxy."""
    controls: bool = False
    """Rank by shuffled proxies and noise too, three times as much."""
    output: str = "evaluate.json"
    """File for everything that was measured, as JSON; the figures are printed."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        _at_least(self, queries=2, images=50, width=1, steps=1, weights=1)


def _at_least(options: Any, **least: int) -> None:
    for name, low in least.items():
        if getattr(options, name) < low:
            raise InputRefused(f"--{name} {getattr(options, name)}: must be at least {low}")
