"""The flags of the verbs that draw, each with why it is there, and the checks that need no file.
Knows names and defaults; nothing of models, annotations or Ray."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from actors import random_weights, tiny
from actors.recipe import MAX_SEED, Capture
from ray_app.errors import Refused

DEFAULT_STEPS = ("1", "4", "8", "16", "32")
MAX_PIXELS = 16_383
"""Of height and width: no webp can have more, and no model comes near it."""


class Options:
    """The flags of a verb."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense, whatever files and models there are."""
        for name, value in vars(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and not _is_text(text):
                    raise Refused(f"--{name} {text!r}: has a NUL, or bytes that are not UTF-8")


@dataclasses.dataclass(frozen=True)
class Generate(Options):
    """Draw every prompt's step-tagged images and index them; what is there already is not drawn again.

    Example: proxyqueue generate --model_type sdxl --json_file test.json --output_base_path out --num_prompts 5

    Exit codes: 0 all images are there, 2 refused (bad input), 3 some failed, 130 interrupted.
    """

    model_type: Literal["sdxl", "flux"] = "sdxl"
    """Family of the model; names the folders of the tree."""
    json_file: str = "./test1.json"
    """Annotations: a JSON list of queries in the CIRCO schema; a path, or the URL of an object store."""
    output_base_path: str = "./output"
    """OUTPUT: where the tree, the index and the runs' records are written; a path, or s3://, gs://, abfs://."""
    num_prompts: int = 5
    """Prompts drawn of each query, its first ones."""
    img_per_prompt: int = 1
    """Images drawn of each prompt, with seeds of their own."""
    max_inference_steps: int = 32
    """Denoising steps of the one run that all images are taken from."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps to save, 1-based; or shares of all steps: 25% 50% 100%."""
    guidance_scale: float = 0.0
    """Classifier-free guidance; 0 as turbo and schnell want it, SDXL base wants about 5, FLUX dev 3.5."""
    idx: int = 0
    """Which share of the queries to draw, 0 to gpu_num - 1; for clusters without Ray."""
    gpu_num: int = 1
    """Number of shares: floor(n/gpu_num) queries each, the last takes the rest."""
    sdxl_path: str = "stabilityai/sdxl-turbo"
    """SDXL model: a hub id or a local folder. Safetensors only, never remote code."""
    flux_path: str = "black-forest-labs/FLUX.1-schnell"
    """Flux model, likewise."""
    model_path: str | None = None
    """Overrides both; "tiny" is the built-in model for machines with no GPU."""

    revision: str | None = None
    """Branch, tag or commit of a hub model; what it resolves to is recorded and loaded everywhere."""
    variant: str | None = None
    """Variant of the weights, as named in their files: "fp16", "bf16". Default: fp16 if all are, on a GPU."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """Field of the annotations that holds a query's list of prompts."""
    height: int | None = None
    """Pixels; the model's own default (512 for turbo, 1024 for the others)."""
    width: int | None = None
    """Pixels; likewise."""
    max_sequence_length: int = 256
    """Tokens of a prompt that Flux's T5 encoder sees, at most 512 and what it takes; another length, another image."""
    negative_prompt: str | None = None
    """What not to draw (SDXL, with guidance above 1)."""
    seed: int = 0
    """Base of all seeds."""
    seed_mode: Literal["image", "slot"] = "image"
    """image: seed + image index, so a query's prompts share their noise, as in the scripts; slot: noise of its own."""
    snapshot: Literal["xt", "x0", "both"] = "xt"
    """The image at a step: xt, the noisy latents as they are; x0, the model's prediction of the clean image."""

    mode: Literal["once", "separate"] = "once"
    """once: a prompt is denoised once and its steps are taken on the way; separate: a run of its own for each step
    count, as the scripts do: finished images of N-step runs."""
    vae_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the VAE, kept so: halves what decoding takes, and changes pixels. Default float32 for SDXL, whose VAE
    overflows in float16; else that of the model."""
    compile: bool = False
    """torch.compile the model's repeated blocks: minutes at the start of each actor, then faster; moves low bits."""

    batch_size: int | None = None
    """Prompts denoised together, always this many (the tail is padded): it moves low bits. By default by model."""
    num_workers: str | None = None
    """Actors, N or MIN:MAX. MAX are asked for and the first begins; refused where MIN can never come. Default: every
    GPU that the cluster has or its autoscaler can bring, or one 1-thread actor a core on CPUs."""
    gpus_per_actor: float | None = None
    """GPUs (or the fraction of one) each actor reserves. Default 1, and none where it draws on CPUs."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cuda, and cpu for the tiny models. Full-size models on CPUs take minutes an image."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the images; png keeps every bit."""
    image_quality: int = 95
    """1 to 100, for jpg and webp."""

    denoise_timeout: float | None = None
    """Seconds until a batch counts as hung and its actor is replaced. Default: 20 times the median, at least 600."""
    skip_failed: bool = False
    """Leave prompts alone that failed in an earlier run, instead of trying them again."""
    force: bool = False
    """Draw even if another run that is going on draws the same into this output."""

    limit: int | None = None
    """Draw the first N queries only."""
    query_ids: tuple[int, ...] = ()
    """Draw these queries only."""
    strict: bool = False
    """Refuse the file if any query of it can't be used, instead of skipping that query."""
    address: str | None = None
    """Ray cluster to join, HOST:PORT or "auto"; RAY_ADDRESS is honoured; neither: Ray is started on this machine."""
    shared_filesystem: bool = False
    """OUTPUT is mounted on every node: any node writes images, instead of this one alone."""
    dry_run: bool = False
    """Print the plan and stop."""

    def model(self) -> str:
        """The model to load."""
        return self.model_path or (self.sdxl_path if self.model_type == "sdxl" else self.flux_path)

    def target_device(self) -> Literal["cuda", "cpu"]:
        """Where to draw."""
        return self.device or ("cpu" if self.model() in (tiny.NAME, random_weights.MID) else "cuda")

    def gpus(self) -> float:
        """GPUs that each actor reserves; 0 if it takes a CPU instead."""
        if self.gpus_per_actor is not None:
            return self.gpus_per_actor
        return 1.0 if self.target_device() == "cuda" else 0.0

    def captures(self) -> list[Capture]:
        """The images wanted of each denoise."""
        snapshots = ("xt", "x0") if self.snapshot == "both" else (self.snapshot,)
        steps = parse_steps(self.save_steps, self.max_inference_steps)
        return [Capture(step, snapshot) for snapshot in snapshots for step in steps]

    def workers(self) -> tuple[int, int] | None:
        """(min, max) actors, or None for as many as fit."""
        if self.num_workers is None:
            return None
        low, _, high = self.num_workers.partition(":")
        try:
            bounds = int(low), int(high or low)
        except ValueError:
            bounds = 0, 0
        if not 1 <= bounds[0] <= bounds[1]:
            raise Refused(f"--num_workers {self.num_workers}: not a number of actors, N or MIN:MAX, from 1")
        return bounds

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense whatever the model and the file are."""
        super().check_flags()
        at_least_one = ("num_prompts", "img_per_prompt", "max_inference_steps", "gpu_num", "batch_size", "limit")
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise Refused(f"--{name} {value}: must be at least 1")
        for name, low, high in (
            ("idx", 0, self.gpu_num - 1),
            ("image_quality", 1, 100),
            ("max_sequence_length", 1, 512),
            ("seed", 0, MAX_SEED),
            ("num_prompts", 1, 2**15),  # prompt and image indices are int16 in the index
            ("img_per_prompt", 1, 2**15),
            ("batch_size", 1, 2**15 - 1),
            ("max_inference_steps", 1, 2**15 - 1),  # and so are steps
            ("height", 1, MAX_PIXELS),
            ("width", 1, MAX_PIXELS),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise Refused(f"--{name} {value}: must be from {low} to {high}")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise Refused(f"--guidance_scale {self.guidance_scale}: must be 0 or more")
        gpus = self.gpus_per_actor
        if gpus is not None and (not gpus > 0 or (gpus > 1 and gpus % 1)):
            raise Refused(f"--gpus_per_actor {gpus}: must be a fraction of one GPU, or whole GPUs")
        if self.denoise_timeout is not None and not self.denoise_timeout > 0:
            raise Refused(f"--denoise_timeout {self.denoise_timeout:g}: must be above 0")
        if self.mode == "separate" and self.snapshot != "xt":
            raise Refused(
                f"--snapshot {self.snapshot}: an N-step run ends with xt and x0 equal; take xt with --mode separate"
            )
        if self.negative_prompt is not None and self.model_type == "flux":
            raise Refused("--negative_prompt: Flux takes none; leave it out")
        if self.model() == random_weights.FULL and self.target_device() == "cpu":
            raise Refused("--model_path full: is for GPUs; on CPUs take mid")
        self.workers()
        self.captures()


@dataclasses.dataclass(frozen=True)
class Preview(Options):
    """Draw one prompt in this process, without Ray or an index, and save its steps as png files.

    Writes OUTPUT_DIR/{model}_multistep/step_01.png … step_32.png, and final.png, the same pixels as the last step's.

    Example: proxyqueue preview --model sdxl --prompt "a dog on a beach" --model_path tiny
    """

    prompt: str
    """What to draw."""
    model: Literal["flux", "sdxl", "both"] = "both"
    """Which family, or one after the other."""
    output_dir: str = "test_output"
    """Where the folders go."""
    max_inference_steps: int = 32
    """Denoising steps of the run."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps to save; the last one is always saved too."""
    guidance_scale: float = 0.0
    """Classifier-free guidance."""
    sdxl_path: str = "stabilityai/sdxl-turbo"
    """SDXL model: a hub id or a local folder."""
    flux_path: str = "black-forest-labs/FLUX.1-schnell"
    """Flux model, likewise."""
    model_path: str | None = None
    """Overrides both; "tiny" is the built-in model for machines with no GPU."""
    variant: str | None = None
    """Variant of the weights, as in their files' names."""
    height: int | None = None
    """Pixels; the model's own default."""
    width: int | None = None
    """Pixels; likewise."""
    seed: int = 0
    """Of the noise."""
    snapshot: Literal["xt", "x0"] = "xt"
    """The image at a step: the noisy latents, or the model's prediction of the clean image."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cuda, and cpu for the tiny models."""


@dataclasses.dataclass(frozen=True)
class Demo(Options):
    """The whole thing on this machine, offline: six sample queries, tiny SDXL and tiny Flux, a local Ray, CPUs only.

    Prints the tree and three sample queries on the index, and writes a gallery to look at.

    Example: proxyqueue demo
    """

    output_base_path: str = "./proxyqueue_demo"
    """OUTPUT of the demo; a second demo there finds everything done."""


def check_steps(steps: Sequence[int]) -> None:
    """Raise Refused for the first of --steps that can't be one."""
    for step in steps:
        if step < 1:
            raise Refused(f"--steps {step}: steps begin at 1")


def _is_text(text: str) -> bool:
    """Whether it can be a name and be recorded."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def parse_steps(texts: tuple[str, ...], num_inference_steps: int) -> list[int]:
    """Step numbers from "4" or "25%" (rounded, at least 1), sorted and without doubles.

    The default list is cut at the number of steps, so that fewer steps can be asked for alone.

    Raises:
        Refused: no step, something that is no step, a step outside 1..num_inference_steps.
    """
    if not texts:
        raise Refused("--save_steps: name at least one step")
    if texts == DEFAULT_STEPS:
        texts = tuple(text for text in texts if int(text) <= num_inference_steps)
    steps = set()
    for text in texts:
        number = text.removesuffix("%")
        try:
            value = float(number) if text.endswith("%") else int(number)
        except ValueError:
            raise Refused(f"--save_steps {text}: not a step (a whole number, or a share as 25%)") from None
        if text.endswith("%"):
            if not 0 < value <= 100:
                raise Refused(f"--save_steps {text}: a share is above 0% and at most 100%")
            value = max(1, int(value / 100 * num_inference_steps + 0.5))
        if not 1 <= value <= num_inference_steps:
            raise Refused(f"--save_steps {text}: outside 1..{num_inference_steps} (--max_inference_steps)")
        steps.add(int(value))
    return sorted(steps)
