"""The flags of the verbs that look after an output: verify, clean, compact.
Knows names and defaults; nothing of files."""

import dataclasses
from typing import Annotated

from ray_app.arguments import AtLeast
from ray_app.errors import InputRefused
from ray_app.flags import AnnotationFlags, FamilyFlags, ForceFlags, OutputFlags, ReportFlags, SnapshotFlags, StepFlags


@dataclasses.dataclass(frozen=True)
class Verify(ReportFlags, AnnotationFlags, FamilyFlags, OutputFlags):
    """Check that an output's index and files match; --repair fixes what needs no GPU.

    Every newest row against its file, every step's folder against the rows, feature caches, staging, the index's parts.
    With --json_file every slot of the annotations must exist too, at every step that the index knows.

    Example: proxyqueue verify --output_base_path out --json_file test.json --num_prompts 5 --deep

    Exit codes: 0 clean, 1 problems found (repaired or not), 2 refused, 130 interrupted.
    """

    deep: bool = False
    """Decode every image too: it has the size that its row says, and more than one colour."""
    redraw: Annotated[int, AtLeast(0)] = 0
    """Draw this many random images again from what the index holds alone, and compare the bytes."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Which images --redraw takes."""
    repair: bool = False
    """Drop rows whose file is gone or wrong, move such files and strays to OUTPUT/.set_aside, remove stale caches."""
    threads: Annotated[int, AtLeast(1)] = 16
    """Files read at the same time."""


@dataclasses.dataclass(frozen=True)
class Clean(ForceFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Remove images with their rows and feature caches, so that the index stays true whenever it is stopped.

    What proxyqueue did not write stays and is named.

    Example: proxyqueue clean --output_base_path out --model_type sdxl --steps 1 4 --dry_run

    Exit codes: 0 removed, or nothing to remove; 2 refused, 130 interrupted.
    """

    all: bool = False
    """Remove all that was written here: images, index, runs' records, caches, features, gallery, staging."""
    caches: bool = False
    """Remove the feature caches of retrieval scripts and export's metadata.parquet only; images and rows stay."""
    yes: bool = False
    """Don't ask; needed where there is no terminal to ask on."""

    def check_flags(self) -> None:
        """Raise Refused for flags that don't say what is to go."""
        super().check_flags()
        if not self.all and self.model_type is None:
            raise InputRefused("--model_type: name whose images are to go, or everything with --all", flag="model_type")
        named = {"model_type": self.model_type, "steps": self.steps, "snapshot": self.snapshot}
        for name, value in named.items():
            if self.all and value:
                raise InputRefused(f"--all: takes everything; leave out --{name}", flag="all")


@dataclasses.dataclass(frozen=True)
class Compact(FamilyFlags, OutputFlags):
    """Write an index's many small parts anew as few sorted ones, with the newest row of each image.

    Safe while others read or write the index, and to kill at any time.

    Example: proxyqueue compact --output_base_path out

    Exit codes: 0 compact, 2 refused, 130 interrupted.
    """
