"""What an encoder's config says, read before anything is loaded: its kind, image size and vector size.
Knows folders and the hub; imports neither torch nor transformers."""

import os
from pathlib import Path
from typing import Any

from actors import encoders, hub, tiny, weights
from actors.encoders import CONFIG, KINDS, PROCESSOR, Encoder
from actors.errors import ModelError
from ray_app import model_folders
from ray_app.errors import ModelRefused
from ray_app.features.options import BATCH_SIZES, Features
from ray_app.messages import LOG

IMAGE_SIZE = 224
"""Of transformers' configs that don't say; likewise these sizes of vectors."""
VECTOR_SIZES = {"clip": (("projection_dim",), 512), "siglip": (("vision_config", "hidden_size"), 768)}
"""Where a config has the size of a vector."""


def resolve(options: Features) -> Encoder:
    """The encoder that these options mean.

    Raises:
        Refused: no such encoder, another kind of model, or weights that are not safetensors.
    """
    path, revision = options.encoder_path(), options.revision
    folder = Path(os.path.expanduser(path))
    if revision is not None and (path == tiny.NAME or (path and folder.is_dir())):
        raise ModelRefused(f"--revision {revision}: {path} is not a hub id; leave it out", flag="revision")
    if path == tiny.NAME:
        folder, commit = tiny.folder(tiny.CLIP), tiny.revision(tiny.CLIP)
        names = weights.names_in(folder)
    elif path and folder.is_dir():
        path, names, commit = str(folder.resolve()), weights.names_in(folder), None
    elif model_folders.is_hub_id(path):
        snapshot = _look_up(path, revision)
        folder, names, commit = snapshot.folder, list(snapshot.sizes), snapshot.commit
    else:
        known = ", ".join([tiny.NAME, *encoders.SHORT_NAMES])
        raise ModelRefused(
            f"--encoder {path or repr(path)}: no such folder, no hub id (owner/name), and none of {known}",
            flag="encoder",
        )
    config = model_folders.read_json(path, folder, CONFIG, "a model of transformers")
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelRefused(
            f"{path}: {CONFIG}: 'model_type' is {str(kind)[:80]!r}; an encoder is one of {', '.join(KINDS)}", path=path
        )
    if not weights.in_root(names):
        raise ModelRefused(f"{path}: no .safetensors weights of transformers in it; other formats are not loaded")
    if options.preprocessing == "model" and PROCESSOR not in names:
        raise ModelRefused(f"{path}: no {PROCESSOR}; take --preprocessing targetpad", path=path)
    device = options.target_device()
    keys, default_size = VECTOR_SIZES[kind]
    return Encoder(
        path=path,
        revision=commit or model_folders.revision(path, folder, encoders.names_read(names)),
        kind=kind,
        image_size=_positive_int(path, config, ("vision_config", "image_size"), IMAGE_SIZE),
        vector_size=_positive_int(path, config, keys, default_size),
        preprocessing=options.preprocessing,
        device=device,
        dtype="float16" if device == "cuda" else "float32",
        batch_size=options.batch_size or BATCH_SIZES[device],
    )


def _look_up(path: str, revision: str | None) -> hub.Snapshot:
    try:
        return hub.look_up(path, revision, LOG.warning, index=CONFIG)
    except ModelError as error:
        raise ModelRefused(str(error)) from None


def _positive_int(path: str, config: dict[str, Any], keys: tuple[str, ...], default: int) -> int:
    value: Any = config
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelRefused(f"{path}: {CONFIG}: '{'.'.join(keys)}' is {str(value)[:80]!r}, not a whole number from 1")
    return value
