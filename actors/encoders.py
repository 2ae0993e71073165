"""An encoder as its files describe it: a CLIP or SigLIP of transformers, and how images are prepared for it.
Knows names, files and configs; imports no torch."""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from actors import checksums, hub, tiny, weights
from actors.errors import ModelError
from actors.hub import Tell

if TYPE_CHECKING:
    import numpy as np

SHORT_NAMES = {
    "L": "openai/clip-vit-large-patch14",
    "G": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
}
"""Encoders that retrieval scripts call by a letter."""
KINDS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""Classes of transformers by the `model_type` of a config."""
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"

Preprocessing = Literal["targetpad", "model"]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Everything that decides a vector but the image or text itself, and how the work is done.

    Attributes:
        path: a hub id, a local folder, or `tiny.NAME` for the built-in CLIP.
        revision: the hub's commit, or "sha256:…" of a local folder's files, or "builtin:…".
        kind: a key of `KINDS`.
        image_size: height and width of what it sees, in pixels.
        vector_size: numbers of a vector.
        batch_size: images or texts that are encoded together.
    """

    path: str
    revision: str
    kind: str
    image_size: int
    vector_size: int
    preprocessing: Preprocessing
    device: Literal["cuda", "cpu"]
    dtype: Literal["float16", "float32"]
    batch_size: int

    @property
    def is_of_hub(self) -> bool:
        """Whether it is downloaded from the hub."""
        return not self.revision.startswith(("sha256:", "builtin:"))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """An image's or a text's vector, float32 (vector_size,) and not normalised, or why there is none."""

    vector: "np.ndarray | None"
    error_type: str | None = None
    error_message: str | None = None


def full_name(name: str) -> str:
    """The hub id that a short name stands for; any other name as it is."""
    return SHORT_NAMES.get(name, name)


def short_name(path: str) -> str:
    """What retrieval scripts call an encoder; `folder_name` where they have no name for it."""
    return next((short for short, full in SHORT_NAMES.items() if full == path), folder_name(path))


def folder_name(path: str) -> str:
    """A safe name of a folder for an encoder: `owner--name` of a hub id, the last name of a local folder's path."""
    is_folder = path.startswith(("/", ".", "~")) or path.count("/") != 1
    name = Path(path).name if is_folder else path.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "encoder"


def names_read(names: Collection[str]) -> list[str]:
    """The files of an encoder's folder that are read: configs, the tokenizer's files and the weights."""
    configs = [name for name in names if "/" not in name and name.endswith(weights.CONFIGS)]
    return sorted([*configs, *weights.in_root(names)])


def files_of(encoder: Encoder, tell: Tell) -> hub.Files:
    """The files of an encoder of the hub; see `hub.Files`."""
    return hub.Files(encoder.path, encoder.revision, names_read, tell)


def folder_of(encoder: Encoder, tell: Tell) -> Path:
    """Where this machine has the encoder: in the hub's cache, or a local folder whose files are the same.

    Raises:
        ModelError: the hub does not provide it, or this machine's folder has other files.
    """
    if encoder.is_of_hub:
        return files_of(encoder, tell).fetch()
    if encoder.path == tiny.NAME:
        return tiny.folder(tiny.CLIP)
    folder = Path(encoder.path)
    if not folder.is_dir():
        raise ModelError(f"{encoder.path}: no such folder on this machine")
    if checksums.of_folder(folder, names_read(weights.names_in(folder))) != encoder.revision:
        raise ModelError(
            f"{encoder.path}: its files on this machine are not those that the run began with; copy them again"
        )
    return folder
