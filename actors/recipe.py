"""Recipe, the generation config: everything except prompt and seed that decides a pixel; and the seeds themselves.
Knows no torch, no files and no Ray."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

Snapshot = Literal["xt", "x0"]
SeedMode = Literal["image", "slot"]
Mode = Literal["once", "separate"]
"""once: one denoising pass, captured at each requested step; separate: one pass per step count, as in the scripts."""

MAX_SEED = 2**32 - 1
"""torch's CPU generator reads 32 bits of a seed: two seeds that differ above them would give the same noise."""

LOW_BITS = {"low_bits": True}
"""Metadata of a field that changes only the low bits of an image: another value is recorded, with a warning."""

LATER = {"later": True}
"""Metadata of a field that did not exist from the beginning: left out of the fingerprint at its default, so that what
was generated before keeps its fingerprint."""

FAMILY_FIELDS = ("max_sequence_length",)
"""Fields that only some families of models have: None for the others."""

RETURNS_X0 = frozenset({"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"})
"""Schedulers whose `step` returns the predicted clean image as its second element."""

FLOW_MATCH = frozenset({"FlowMatchEulerDiscreteScheduler"})
"""Schedulers that return none, where x0 = sample - sigma * velocity."""


@dataclasses.dataclass(frozen=True, order=True)
class Capture:
    """One image requested of a denoising pass: the snapshot kind and the step (1-based)."""

    step: int
    snapshot: Snapshot = "xt"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How every image of an output is generated. Sizes are in pixels, dtypes are torch's names ("float16")."""

    model_type: str
    model_path: str
    model_revision: str  # a commit of the hub, or "sha256:…" of a local folder, or "builtin:…"
    variant: str | None  # "fp16" where the weights come in such files; decides which are read
    scheduler: str
    scheduler_config: str  # hash of the scheduler's config: the same class can space its steps differently
    dtype: str
    vae_dtype: str
    device: str = dataclasses.field(metadata=LOW_BITS)
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    max_sequence_length: int | None  # prompt tokens that the encoder reads, where the family lets users choose
    negative_prompt: str | None
    batch_size: int = dataclasses.field(metadata=LOW_BITS)  # always denoised at this size, the tail padded
    image_format: str
    image_quality: int | None  # None for png, which has no quality
    mode: Mode = "once"
    compiled: bool = dataclasses.field(default=False, metadata=LOW_BITS)  # with torch.compile
    deterministic: bool = dataclasses.field(default=False, metadata=LOW_BITS | LATER)  # deterministic kernels of torch
    vae_path: str | None = dataclasses.field(default=None, metadata=LATER)  # a VAE other than the model's own
    vae_revision: str | None = dataclasses.field(default=None, metadata=LATER)  # as model_revision

    @property
    def hub_revision(self) -> str | None:
        """The commit to load from the hub; None for local folders and built-in models, whose revision is a hash."""
        return _hub_commit(self.model_revision)

    @property
    def vae_hub_revision(self) -> str | None:
        """The commit of `vae_path` to load from the hub; None for a local folder, and for the model's own VAE."""
        return _hub_commit(self.vae_revision or "")

    def total_steps(self, capture: Capture) -> int:
        """Steps of the run that a capture is taken from."""
        return self.num_inference_steps if self.mode == "once" else capture.step

    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the recipe's canonical JSON."""
        later = {field.name: field.default for field in dataclasses.fields(self) if "later" in field.metadata}
        values = dataclasses.asdict(self)
        return fingerprint({name: values[name] for name in values if values[name] != later.get(name, ...)})


def _hub_commit(revision: str) -> str | None:
    return None if ":" in revision or not revision else revision


def fingerprint(value: Any) -> str:
    """16 hex digits of the SHA-256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_seed(mode: SeedMode, seed: int, query_id: int, prompt_index: int, image_index: int) -> int:
    """The seed of one slot's noise, 0 to `MAX_SEED`.

    "image" is what the scripts do, seed + image_index: a query's prompts share their noise and can be compared.
    "slot" gives every slot its own noise, stable across runs and machines.
    """
    if mode == "image":
        return seed + image_index
    text = f"{seed}/{query_id}/{prompt_index}/{image_index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def denoise_id(prompt: str, seed: int) -> str:
    """16 hex digits that are equal for slots that request the same image."""
    return hashlib.sha256(f"{seed}\0{prompt}".encode()).hexdigest()[:16]
