"""The flags of the commands that generate images, and the checks that need no file.
Knows names and defaults; nothing of models, annotations or Ray."""

import dataclasses
import itertools
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from actors import random_weights, tiny
from actors.families import FAMILIES
from actors.recipe import MAX_SEED, Capture
from ray_app.arguments import AtLeast, NotNegative, Options, Seconds, Within
from ray_app.errors import InputRefused
from ray_app.flags import (
    DEFAULT_MODEL_TYPE,
    DEFAULT_STEPS,
    INT16,
    AnnotationFlags,
    ClusterFlags,
    DenoiseFlags,
    FamilyFlags,
    ForceFlags,
    ModelFlags,
    ModelType,
    OutputFlags,
    PoolFlags,
    QueryFlags,
    ReportFlags,
)

if TYPE_CHECKING:
    ModelTypeOrBoth = str
else:
    ModelTypeOrBoth = Literal[(*sorted(FAMILIES), "both")]


def _guidance_help() -> str:
    """The help text, from the cards of the families' published models."""
    scales: dict[str, float] = {}
    for family in FAMILIES.values():
        scales |= family.guidance_scales
    unguided = [model for model, scale in scales.items() if not scale]
    (first, about), *others = [(model, scale) for model, scale in scales.items() if scale]
    guided = [f"{first} wants about {about:g}", *(f"{model} {scale:g}" for model, scale in others)]
    return f"Classifier-free guidance; 0 as {' and '.join(unguided)} want it, {', '.join(guided)}."


@dataclasses.dataclass(frozen=True)
class NoiseFlags(Options):
    """Which noise an image starts from, and how strongly the prompt guides it."""

    guidance_scale: Annotated[float, NotNegative(), tyro.conf.arg(help=_guidance_help())] = 0.0
    seed: Annotated[int, Within(0, MAX_SEED)] = 0
    """Base of all seeds."""


@dataclasses.dataclass(frozen=True)
class Generate(
    ReportFlags,
    ClusterFlags,
    ForceFlags,
    PoolFlags,
    ModelFlags,
    NoiseFlags,
    DenoiseFlags,
    QueryFlags,
    AnnotationFlags,
    OutputFlags,
    FamilyFlags,
):
    """Generate every prompt's step-tagged images and index them; images that exist already are skipped.

    Example: proxyqueue generate --model_type sdxl --json_file test.json --output_base_path out --num_prompts 5

    Exit codes: 0 all images exist, 2 refused (bad input), 3 some failed, 130 interrupted.
    """

    BARE: ClassVar = {"compile": "on"}

    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model; part of the names of the output's folders."""
    json_file: str = "./test1.json"
    """Annotations: a JSON list of queries in the CIRCO schema; a path, or the URL of an object store."""
    idx: int = 0
    """Index of the share of the queries to generate, 0 to gpu_num - 1; for clusters without Ray."""
    gpu_num: Annotated[int, AtLeast(1)] = 1
    """Number of shares: floor(n/gpu_num) queries each, the last one takes the rest."""
    strict: bool = False
    """Refuse the whole file if any of its queries can't be used, instead of skipping that query."""

    revision: str | None = None
    """Branch, tag or commit of a hub model; what it resolves to is recorded and loaded everywhere."""
    vae_revision: str | None = None
    """Likewise of a VAE of the hub (--vae_path)."""
    max_sequence_length: Annotated[int, Within(1, 512)] = 256
    """Prompt tokens that Flux's T5 encoder reads, up to 512 or the encoder's own limit; changes the image."""
    negative_prompt: str | None = None
    """What the image should not show (SDXL, with guidance above 1)."""
    seed_mode: Literal["image", "slot"] = "image"
    """image: seed + image index, so a query's prompts share their noise, as in the scripts; slot: its own noise."""
    snapshot: Literal["xt", "x0", "both"] = "xt"
    """The image at a step: xt, the noisy latents as they are; x0, the model's prediction of the clean image."""

    mode: Literal["once", "separate"] = "once"
    """once: each prompt is denoised once, and its steps are saved from that one pass.
    separate: one denoising pass per step count, as the scripts do: finished images of N-step passes."""
    vae_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """VAE dtype; changes pixels. Default that of the model, and float32 for an SDXL VAE that overflows in float16: one
    whose config does not say force_upcast false."""
    compile: Literal["off", "on", "auto"] = "off"
    """Compile the model with torch.compile: takes minutes at the first start on a node, then faster; --compile alone is
    on. auto: on GPUs, where the plan is long enough to pay for it. Output may not be bit-identical."""
    deterministic: bool = False
    """Use only those kernels of torch that give the same bits each time on the same GPU. Costs speed: cuDNN and cuBLAS
    can't choose their fastest algorithms. A model with an operation that has no such kernel is refused."""

    batch_size: Annotated[int | Literal["auto"] | None, AtLeast(1), Within(1, INT16)] = None
    """Prompts denoised together, always this many (the last batch is padded). Default depends on the model. auto: as
    many as fit the smallest GPU. With another size, output may not be bit-identical."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the images; png is lossless."""
    image_quality: Annotated[int, Within(1, 100)] = 95
    """1 to 100, for jpg and webp."""

    denoise_timeout: Annotated[float | None, Seconds()] = None
    """Seconds until a batch counts as hung and its actor is replaced. Default: 20 times the median, at least 600."""
    skip_failed: bool = False
    """Skip prompts that failed in an earlier run, instead of retrying them."""

    def model(self) -> str:
        """The model to load."""
        default_path = FAMILIES[self.model_type].default_path  # of a family that has no flag for it
        return self.model_path or getattr(self, f"{self.model_type}_path", default_path)

    def target_device(self) -> Literal["cuda", "cpu"]:
        """The device to generate on."""
        return self.device or ("cpu" if self.model() in (tiny.NAME, random_weights.MID) else "cuda")

    def gpus(self) -> float:
        """GPUs that each actor reserves; 0 if it takes a CPU instead."""
        if self.gpus_per_actor is not None:
            return self.gpus_per_actor
        return 1.0 if self.target_device() == "cuda" else 0.0

    def captures(self) -> list[Capture]:
        """The images requested of each denoising pass."""
        snapshots = ("xt", "x0") if self.snapshot == "both" else (self.snapshot,)
        steps = parse_steps(self.save_steps, self.max_inference_steps)
        return [Capture(step, snapshot) for snapshot, step in itertools.product(snapshots, steps)]

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid for any model and file."""
        super().check_flags()
        if not 0 <= self.idx < self.gpu_num:
            raise InputRefused(f"--idx {self.idx}: must be from 0 to {self.gpu_num - 1}", flag="idx")
        if self.mode == "separate" and self.snapshot != "xt":
            raise InputRefused(
                f"--snapshot {self.snapshot}: an N-step pass ends with xt and x0 equal; use xt with --mode separate"
            )
        family = FAMILIES[self.model_type]
        if self.negative_prompt is not None and not family.takes_negative_prompt:
            raise InputRefused(f"--negative_prompt: {family.title} takes none; leave it out", flag="negative_prompt")
        if self.model() == random_weights.FULL and self.target_device() == "cpu":
            raise InputRefused("--model_path full: is for GPUs; on CPUs take mid", flag="model_path")
        if self.batch_size == "auto" and self.target_device() == "cpu":
            raise InputRefused("--batch_size auto: is for GPUs; on CPUs give a number", flag="batch_size")
        self.worker_bounds()
        self.captures()


@dataclasses.dataclass(frozen=True)
class Preview(ModelFlags, NoiseFlags, DenoiseFlags):
    """Generate the steps of one prompt in this process, without Ray or an index, and save them as png files.

    Writes OUTPUT_DIR/{model}_multistep/step_01.png … step_32.png, and final.png, with the same pixels as the last step.

    Example: proxyqueue preview --model sdxl --prompt "a dog on a beach" --model_path tiny
    """

    _: dataclasses.KW_ONLY
    prompt: str
    """The prompt."""
    model: ModelTypeOrBoth = "both"
    """Family of the model; both runs one after the other."""
    output_dir: str = "test_output"
    """Folder to create the model folders in."""
    snapshot: Literal["xt", "x0"] = "xt"
    """The image at a step: xt, the noisy latents; x0, the model's prediction of the clean image."""


@dataclasses.dataclass(frozen=True)
class Demo(OutputFlags):
    """From queries to the answer on this machine, offline: 32 queries of Emoji CIR, tiny models, a local Ray, CPUs.

    Generates, encodes and evaluates; prints scores by step, one query of the index, and three commands to try next.

    Example: proxyqueue demo
    """

    output_base_path: str = "./proxyqueue_demo"
    """OUTPUT of the demo; a second demo in the same folder finds that everything exists."""


def parse_steps(texts: tuple[str, ...], num_inference_steps: int) -> list[int]:
    """Step numbers from "4" or "25%" (rounded, at least 1), sorted and without duplicates.

    The default list is cut at the number of steps, so that --max_inference_steps can be lowered alone.

    Raises:
        Refused: no step, something that is not a step, a step outside 1..num_inference_steps.
    """
    if not texts:
        raise InputRefused("--save_steps: name at least one step", flag="save_steps")
    if texts == DEFAULT_STEPS:
        texts = tuple(text for text in texts if int(text) <= num_inference_steps)
    steps = set()
    for text in texts:
        number = text.removesuffix("%")
        try:
            value = float(number) if text.endswith("%") else int(number)
        except ValueError:
            raise InputRefused(
                f"--save_steps {text}: not a step (a whole number, or a share as 25%)", flag="save_steps"
            ) from None
        if text.endswith("%"):
            if not 0 < value <= 100:
                raise InputRefused(f"--save_steps {text}: a share is above 0% and at most 100%", flag="save_steps")
            value = max(1, int(value / 100 * num_inference_steps + 0.5))
        if not 1 <= value <= num_inference_steps:
            raise InputRefused(
                f"--save_steps {text}: outside 1..{num_inference_steps} (--max_inference_steps)", flag="save_steps"
            )
        steps.add(int(value))
    return sorted(steps)
