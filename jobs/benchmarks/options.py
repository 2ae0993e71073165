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

VARIANTS = ("separate", "callback", "proxyqueue", "limit")
"""In the order of the first round."""

Variant = Literal["separate", "callback", "proxyqueue", "limit"]
Lever = Literal["batch_of_one", "usual_malloc", "vae_bfloat16", "channels_last", "fused_qkv", "compiled"]
Part = Literal["images", "plan", "resume", "index"]


@dataclasses.dataclass(frozen=True)
class Speed(Options):
    """Measure proxyqueue beside separate runs, the callback script and the bare model: same prompts, same hardware.

    All in one run, interleaved, in an order that rotates each round; ratios are medians of the rounds' own ratios.
    On CPUs nothing else should be running. Nothing is measured that is not drawn.

    Example: python -m jobs.benchmarks.speed --model mid --rounds 5

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    model: Literal["tiny", "mid", "full"] = "mid"
    """tiny; mid, a 33 M UNet at 256 px; full, the real architectures with random weights, on a GPU only."""
    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
    variants: tuple[Variant, ...] = VARIANTS
    """Which of them to measure."""
    levers: tuple[Lever, ...] = ()
    """Measure the limit with one thing changed too, a variant each: what the thing is worth."""
    rounds: int = 5
    """How often each is measured."""
    prompts: int = 42
    """Slots to draw; about 5 % of them ask for the same as another."""
    json_file: str | None = None
    """Annotations to take the prompts from, the first ones; default made-up prompts with as many duplicates."""
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
    """Prompts that proxyqueue and the bare model denoise together. By default by model."""
    num_workers: str | None = None
    """Actors of proxyqueue, as in generate; default one a core, or one where a GPU draws."""
    vae_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of proxyqueue and the bare model, as in generate."""
    compile: bool = False
    """torch.compile the model, as in generate; for all of them, before the clock starts."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cpu for tiny and mid, cuda for full."""
    arrangement: Literal["auto", "processes", "threads"] = "auto"
    """On CPUs, how the others draw: a 1-thread process a core, one process with all threads, or the faster of both."""
    work_dir: str | None = None
    """Where pictures and outputs go, a folder a round and variant; default a temporary folder, removed."""
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
        one_gpu = "1" if requested.target_device() == "cuda" else None  # as the others
        return dataclasses.replace(requested, num_workers=self.num_workers or one_gpu)

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense."""
        super().check_flags()
        _at_least(self, rounds=1, prompts=1)
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise InputRefused("--variants: name some of them, each once")
        if self.levers and ("limit" not in self.variants or len(set(self.levers)) < len(self.levers)):
            raise InputRefused("--levers: name each once, and limit in --variants: that is what they are compared with")
        if self.model == random_weights.FULL and self.device == "cpu":
            raise InputRefused("--model full: is for GPUs; on CPUs take mid")
        assert self.model in (tiny.NAME, *random_weights.NAMES)


@dataclasses.dataclass(frozen=True)
class Scale(Options):
    """Measure what the queue itself costs: images that cost nothing, a million slots, five million rows.

    Each measurement runs in a fresh process. The defaults write some 40 GB to --work_dir.

    Example: python -m jobs.benchmarks.scale --parts plan index --plan_slots 100000 --rows 500000

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    parts: tuple[Part, ...] = ("images", "plan", "resume", "index")
    """images: random bytes as images through Ray, writer and index; plan: of nothing done; resume: of half done; index:
    the plan's read, a count by step and one query's rows, before and after compact."""
    slots: tuple[int, ...] = (10_000, 100_000)
    """Slots of images, a run each."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps, so images, of each of these slots; also of the index's."""
    image_bytes: int = 60_000
    """Size of an image; of 512 px as jpg it is about 60 kB."""
    batch_size: int = 16
    """Slots that an actor draws together."""
    num_workers: str | None = None
    """Actors, as in generate."""
    plan_slots: int = 1_000_000
    """Slots of plan."""
    resume_slots: int = 1_000_000
    """Slots of resume; half of them have a row and a file of one byte."""
    rows: int = 5_000_000
    """Rows of the index."""
    rows_a_part: int = 5_000
    """Rows of each part before compact; a run commits as many, or every five seconds."""
    work_dir: str | None = None
    """Where all this is written; default a temporary folder. What is measured is removed there afterwards."""
    output: str = "scale.json"
    """File for everything that was measured, as JSON; the figures are printed."""

    def steps(self) -> list[int]:
        """The steps of each slot."""
        return parse_steps(self.save_steps, Generate.max_inference_steps)

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense."""
        super().check_flags()
        least = {"image_bytes": 1, "batch_size": 1, "plan_slots": 1, "resume_slots": 2, "rows": 1, "rows_a_part": 1}
        _at_least(self, **least)
        if not self.parts or len(set(self.parts)) < len(self.parts):
            raise InputRefused("--parts: name some of them, each once")
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
        """Raise Refused for the first flag whose value makes no sense."""
        super().check_flags()
        _at_least(self, queries=2, images=50, width=1, steps=1, weights=1)


def _at_least(options: Any, **least: int) -> None:
    for name, low in least.items():
        if getattr(options, name) < low:
            raise InputRefused(f"--{name} {getattr(options, name)}: must be at least {low}")
