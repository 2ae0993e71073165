"""The flags of the maintenance commands: verify, clean, compact.
Knows names and defaults; nothing of files."""

import dataclasses
from typing import Annotated

from ray_app.arguments import AtLeast
from ray_app.errors import InputRefused
from ray_app.flags import AnnotationFlags, FamilyFlags, ForceFlags, OutputFlags, ReportFlags, SnapshotFlags, StepFlags


@dataclasses.dataclass(frozen=True)
class Verify(ReportFlags, AnnotationFlags, FamilyFlags, OutputFlags):
    """Check that an output's index and files match; --repair fixes what needs no GPU.

    Compares every newest row with its file and every step's folder with the rows, and checks feature caches, staging
    and the index's parts. With --json_file, every slot of the annotations must also exist, at every indexed step.

    Example: proxyqueue verify --output_base_path out --json_file test.json --num_prompts 5 --deep

    Exit codes: 0 clean, 1 problems found (repaired or not), 2 refused, 130 interrupted.
    """

    deep: bool = False
    """Also decode every image: its size must match its row, and it must have more than one colour."""
    redraw: Annotated[int, AtLeast(0)] = 0
    """Regenerate this many random images from the index alone, and compare the bytes."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seed of --redraw's random choice of images."""
    repair: bool = False
    """Drop rows whose file is missing or wrong, remove stale caches.
    Quarantine such files and orphan files in OUTPUT/.set_aside."""
    threads: Annotated[int, AtLeast(1)] = 16
    """Files read at the same time."""


@dataclasses.dataclass(frozen=True)
class Clean(ForceFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Remove images with their rows and feature caches; the index stays valid even if this is interrupted.

    Files that proxyqueue did not write are kept and listed.

    Example: proxyqueue clean --output_base_path out --model_type sdxl --steps 1 4 --dry_run

    Exit codes: 0 removed, or nothing to remove; 2 refused, 130 interrupted.
    """

    all: bool = False
    """Remove everything that proxyqueue wrote: images, index, run records, features, scores, pages and caches."""
    caches: bool = False
    """Remove only the feature caches of retrieval scripts and export's metadata.parquet; images and rows stay."""
    yes: bool = False
    """Don't ask for confirmation; required without a terminal."""

    def check_flags(self) -> None:
        """Raise Refused for flags that don't say what to remove."""
        super().check_flags()
        if not self.all and self.model_type is None:
            raise InputRefused(
                "--model_type: name the model to remove, or remove everything with --all",
                flag="model_type",
            )
        named = {"model_type": self.model_type, "steps": self.steps, "snapshot": self.snapshot}
        for name, value in named.items():
            if self.all and value:
                raise InputRefused(f"--all: removes everything; leave out --{name}", flag="all")


@dataclasses.dataclass(frozen=True)
class Compact(FamilyFlags, OutputFlags):
    """Rewrite an index's many small parts as few sorted ones, with the newest row of each image.

    Safe while other processes read or write the index, and safe to kill at any time.

    Example: proxyqueue compact --output_base_path out

    Exit codes: 0 compacted, 2 refused, 130 interrupted.
    """
