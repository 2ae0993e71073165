"""Flags that several commands take, each declared once, in groups that their options inherit.
Knows names, defaults and bounds; nothing of what a command does with them."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from actors.families import FAMILIES
from ray_app.arguments import AtLeast, Fraction, Options, StepNumber, Within
from ray_app.errors import InputRefused

if TYPE_CHECKING:
    ModelType = str
else:
    ModelType = Literal[tuple(FAMILIES)]
DEFAULT_MODEL_TYPE = next(iter(FAMILIES))
DEFAULT_STEPS = ("1", "4", "8", "16", "32")
MAX_PIXELS = 16_383
"""Of height and width: no webp can have more, and no model comes near it."""
INT16 = 2**15 - 1
"""The index holds steps, batch sizes and the indices of prompts and images as int16."""


@dataclasses.dataclass(frozen=True)
class OutputFlags(Options):
    """Which OUTPUT."""

    output_base_path: str = "./output"
    """OUTPUT, the folder of images, index and run records: a path, or s3://, gs://, abfs://."""


@dataclasses.dataclass(frozen=True)
class FamilyFlags(Options):
    """Which family of models, of those in an output."""

    model_type: ModelType | None = None
    """This family of models only; default all."""


@dataclasses.dataclass(frozen=True)
class SnapshotFlags(Options):
    """Which kind of snapshot, of those in an output."""

    snapshot: Literal["xt", "x0"] | None = None
    """This kind of snapshot only; default both."""


@dataclasses.dataclass(frozen=True)
class StepFlags(Options):
    """Which steps, of those in an output."""

    steps: Annotated[tuple[int, ...], StepNumber()] = ()
    """These steps only; default all."""


@dataclasses.dataclass(frozen=True)
class AnnotationFlags(Options):
    """Which images the annotations request, for commands that also work without them."""

    json_file: str | None = None
    """Annotations: a JSON list of queries in the CIRCO schema; a path, or the URL of an object store."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """Field of the annotations that holds a query's list of prompts."""
    num_prompts: Annotated[int, AtLeast(1), Within(1, INT16 + 1)] = 5
    """Prompts per query (the first N)."""
    img_per_prompt: Annotated[int, AtLeast(1), Within(1, INT16 + 1)] = 1
    """Images per prompt, each with its own seed."""


@dataclasses.dataclass(frozen=True)
class QueryFlags(Options):
    """Which queries."""

    limit: Annotated[int | None, AtLeast(1)] = None
    """The first N queries only."""
    query_ids: tuple[int, ...] = ()
    """These queries only."""


@dataclasses.dataclass(frozen=True)
class ModelFlags(Options):
    """Which weights, and where they run."""

    sdxl_path: str = FAMILIES["sdxl"].default_path
    """SDXL model: a hub id or a local folder. Safetensors only, never remote code."""
    flux_path: str = FAMILIES["flux"].default_path
    """Flux model, likewise."""
    model_path: str | None = None
    """A hub id or a local folder, instead of the family's path; "tiny" is the built-in model, for CPUs."""
    vae_path: str | None = None
    """Another VAE for the model's latents, instead of its own: a hub id or a local folder of an AutoencoderKL. SDXL's
    decodes faster in half precision, which madebyollin/sdxl-vae-fp16-fix is made for. Changes pixels."""
    variant: str | None = None
    """Variant of the weights, as named in their files: "fp16", "bf16". Default: fp16 if all are, on a GPU."""
    device: Literal["cuda", "cpu"] | None = None
    """Default cuda, and cpu for the tiny models. Full-size models on CPUs take minutes per image."""


@dataclasses.dataclass(frozen=True)
class DenoiseFlags(Options):
    """How a prompt is denoised, and which steps are saved."""

    max_inference_steps: Annotated[int, AtLeast(1), Within(1, INT16)] = 32
    """Denoising steps of the one run that all images are taken from."""
    save_steps: tuple[str, ...] = DEFAULT_STEPS
    """Steps to save, 1-based; or shares of all steps: 25% 50% 100%."""
    height: Annotated[int | None, Within(1, MAX_PIXELS)] = None
    """Pixels; the model's own default (512 for turbo, 1024 for the others)."""
    width: Annotated[int | None, Within(1, MAX_PIXELS)] = None
    """Pixels; likewise."""


@dataclasses.dataclass(frozen=True)
class ClusterFlags(Options):
    """Which Ray cluster, and who writes there."""

    address: str | None = None
    """Ray cluster to join, HOST:PORT or "auto"; RAY_ADDRESS is honoured; neither: Ray is started on this machine."""
    shared_filesystem: bool = False
    """OUTPUT is mounted on every node: any node writes, instead of this one alone."""


@dataclasses.dataclass(frozen=True)
class PoolFlags(Options):
    """How many actors, and what each reserves."""

    num_workers: str | None = None
    """Actors, N or MIN:MAX. Requests MAX, starts with the first that is ready, fails if MIN can never be scheduled.
    Default: every GPU that the cluster has or its autoscaler can bring, or one 1-thread actor per core on CPUs."""
    gpus_per_actor: Annotated[float | None, Fraction("GPU")] = None
    """GPUs (or the fraction of one) each actor reserves. Default 1, and none where it runs on CPUs."""

    def worker_bounds(self) -> tuple[int, int] | None:
        """(min, max) actors, or None for as many as fit.

        Raises:
            Refused: no numbers.
        """
        if self.num_workers is None:
            return None
        low, _, high = self.num_workers.partition(":")
        try:
            bounds = int(low), int(high or low)
        except ValueError:
            bounds = 0, 0
        if not 1 <= bounds[0] <= bounds[1]:
            raise InputRefused(
                f"--num_workers {self.num_workers}: not a number of actors, N or MIN:MAX, from 1", flag="num_workers"
            )
        return bounds


@dataclasses.dataclass(frozen=True)
class ForceFlags(Options):
    """Whether an active run blocks a command, and whether the command only prints its plan."""

    force: bool = False
    """Proceed even if an active run works on the same output; its images may be lost."""
    dry_run: bool = False
    """Print the plan and stop."""


@dataclasses.dataclass(frozen=True)
class ReportFlags(Options):
    """How a report is printed."""

    format: Literal["text", "json"] = "text"
    """text: a short report for people; json: everything, as one object."""
