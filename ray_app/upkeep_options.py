"""The flags of the verbs that look after an output: verify, clean, compact.
Knows names and defaults; nothing of files."""

import dataclasses
from typing import Literal

from ray_app.errors import Refused
from ray_app.options import Options, check_steps


@dataclasses.dataclass(frozen=True)
class Verify(Options):
    """Check that an output's index and files say the same; put right what needs no GPU.

    Every newest row against its file, every step's folder against the rows, feature caches, staging, the index's parts.

    Example: proxyqueue verify --output_base_path out --json_file test.json --num_prompts 5 --deep

    Exit codes: 0 clean, 1 problems found (put right or not), 2 refused, 130 interrupted.
    """

    output_base_path: str = "./output"
    """OUTPUT: what to check."""
    model_type: Literal["sdxl", "flux"] | None = None
    """Check this family only; default every one that has an index or images there."""
    json_file: str | None = None
    """Annotations: then every slot of them must be there at every step that the index knows."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """Field of the annotations that holds a query's list of prompts."""
    num_prompts: int = 5
    """Prompts of each query that must be there, its first ones."""
    img_per_prompt: int = 1
    """Images of each prompt that must be there."""
    deep: bool = False
    """Decode every image too: it has the size that its row says, and more than one colour."""
    redraw: int = 0
    """Draw this many random images again from what the index holds alone, and compare the bytes."""
    seed: int = 0
    """Which images --redraw takes."""
    repair: bool = False
    """Drop rows whose file is gone or wrong, move such files and strays to OUTPUT/.set_aside, remove stale caches."""
    format: Literal["text", "json"] = "text"
    """text: counts, and the first 20 problems of each kind; json: everything."""
    threads: int = 16
    """Files read at the same time."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense."""
        super().check_flags()
        for name, least in (("num_prompts", 1), ("img_per_prompt", 1), ("threads", 1), ("redraw", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise Refused(f"--{name} {getattr(self, name)}: must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Clean(Options):
    """Remove images with their rows and feature caches, so that the index stays true whenever it is stopped.

    What proxyqueue did not write stays and is named.

    Example: proxyqueue clean --output_base_path out --model_type sdxl --steps 1 4 --dry_run

    Exit codes: 0 removed, or nothing to remove; 2 refused, 130 interrupted.
    """

    output_base_path: str = "./output"
    """OUTPUT: where to remove from."""
    model_type: Literal["sdxl", "flux"] | None = None
    """Family whose images go; must be named unless --all is."""
    steps: tuple[int, ...] = ()
    """Steps whose images go; default all of them."""
    snapshot: Literal["xt", "x0"] | None = None
    """Kind of snapshot that goes; default both."""
    all: bool = False
    """Remove all that was written here: images, index, runs' records, caches, gallery, staging."""
    caches: bool = False
    """Remove the feature caches of retrieval scripts and export's metadata.parquet only; images and rows stay."""
    dry_run: bool = False
    """Say what would go, how many files and bytes, and stop."""
    yes: bool = False
    """Don't ask; needed where there is no terminal to ask on."""
    force: bool = False
    """Also while a run is going on in this output; what it draws meanwhile may be lost."""

    def check_flags(self) -> None:
        """Raise Refused for flags that don't say what is to go."""
        super().check_flags()
        if not self.all and self.model_type is None:
            raise Refused("--model_type: name whose images are to go, or everything with --all")
        named = {"model_type": self.model_type, "steps": self.steps, "snapshot": self.snapshot}
        for name, value in named.items():
            if self.all and value:
                raise Refused(f"--all: takes everything; leave out --{name}")
        check_steps(self.steps)


@dataclasses.dataclass(frozen=True)
class Compact(Options):
    """Write an index's many small parts anew as few sorted ones, with the newest row of each image.

    Safe while others read or write the index, and to kill at any time.

    Example: proxyqueue compact --output_base_path out

    Exit codes: 0 compact, 2 refused, 130 interrupted.
    """

    output_base_path: str = "./output"
    """OUTPUT: whose index to compact."""
    model_type: Literal["sdxl", "flux"] | None = None
    """Compact the index of this family only; default all."""
