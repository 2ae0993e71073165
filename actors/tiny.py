"""The tiny built-in models: small SDXL and Flux pipelines and a CLIP, trained by jobs/training, shipped in this folder.
Knows where they are and how their weights are identified; they are loaded like any other model."""

import functools
import hashlib
from pathlib import Path

from actors.families import FAMILIES

NAME = "tiny"
"""What `--model_path` and `--encoder` call them."""

CLIP = "clip"
"""The encoder among them."""

ROOT = Path(__file__).parent

SIZE = 64
"""Height and width that they are trained for, in pixels."""


def folder(model_type: str) -> Path:
    """The pipeline of a family, or the encoder `CLIP`, as save_pretrained left it."""
    return ROOT / f"tiny_{model_type}"


def model_types() -> list[str]:
    """The families that have one."""
    return [name for name in FAMILIES if folder(name).is_dir()]


@functools.cache
def revision(model_type: str) -> str:
    """ "builtin:…", a hash of every file: retrained models make another recipe."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder(model_type).rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder(model_type)).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return f"builtin:{digest.hexdigest()[:16]}"
