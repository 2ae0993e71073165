"""Folders of models, of this machine or the hub: names, checksums, config files; each fault is one line.
Knows files; nothing of what a config decides."""

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors import checksums
from ray_app.errors import ModelRefused, one_line
from ray_app.progress import Bytes


def is_hub_id(path: str) -> bool:
    """Whether a path has the form of a hub id, owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not path.startswith(".")


def revision(path: str, folder: Path, files: Sequence[str]) -> str:
    """The "sha256:…" of a local folder's files, which are read once; shows how far that is.

    Args:
        path: the model's, for messages.

    Raises:
        Refused: a file can't be read.
    """
    try:
        with contextlib.closing(Bytes(f"of {path} read")) as shown:
            return checksums.of_folder(folder, files, shown.show)
    except OSError as error:
        raise ModelRefused(f"{error.filename or path}: can't be read: {error.strerror}") from None


def read_json(path: str, folder: Path, name: str, kind: str = "a folder of a diffusers pipeline") -> dict[str, Any]:
    """A config as an object.

    Args:
        path: the model's, for messages.
        kind: what a folder without such a file is not.

    Raises:
        Refused: no such file, or none that can be read.
    """
    try:
        value = json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise ModelRefused(f"{path}: no {name}; this is not {kind}", path=path) from None
    except RecursionError:
        raise ModelRefused(f"{path}: {name} can't be read: nested too deeply", path=path) from None
    except (OSError, ValueError) as error:
        raise ModelRefused(f"{path}: {name} can't be read: {one_line(error)}", path=path) from None
    if not isinstance(value, dict):
        raise ModelRefused(f"{path}: {name} is not a JSON object", path=path)
    return value


def positive_int(path: str, name: str, config: dict[str, Any], key: str, default: int) -> int:
    """A whole number of at least 1 from a model's config; Refused for another value."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelRefused(f"{path}: {name}: '{key}' is {str(value)[:80]!r}, not a whole number from 1", path=path)
    return value


def vae_factor(path: str, name: str, config: dict[str, Any]) -> int:
    """Pixels per latent, in both directions, of a VAE; Refused if its config has no list of blocks."""
    blocks = config.get("block_out_channels", [0] * 4)
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= 10:
        raise ModelRefused(f"{path}: {name}: 'block_out_channels' is not a list of 1 to 10 blocks", path=path)
    return 2 ** (len(blocks) - 1)
