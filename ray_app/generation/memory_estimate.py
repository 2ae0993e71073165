"""How much memory a model needs: its parameters in the dtypes they are loaded in, and what drawing takes beside.
Knows safetensors' headers and published sizes; nothing of clusters."""

import json
from pathlib import Path

from actors import tiny, weights
from ray_app.errors import ModelRefused
from ray_app.generation.model_card import read_card

PUBLISHED = {
    "sdxl": {"unet": 2.567e9, "vae": 0.084e9, "text_encoder": 0.123e9, "text_encoder_2": 0.695e9},
    "flux": {"transformer": 11.901e9, "vae": 0.084e9, "text_encoder": 0.123e9, "text_encoder_2": 4.762e9},
}
"""Parameters of the published models, where their files are not on this machine."""
DRAWING = {"sdxl": 7.5e9, "flux": 5e9}
"""Bytes beside the weights on a GPU, about: decoding eight images of 512 px (SDXL in float32), the denoiser's own."""
PROCESS = 1e9
"""Bytes of a worker's process with torch and diffusers loaded."""


def needed(model_type: str, path: str, device: str, variant: str | None = None) -> tuple[float, float, bool]:
    """Bytes of the weights, bytes in all that one actor needs on its device, and whether the files were read for it."""
    if path == tiny.NAME:
        return 0.01e9, 0.01e9 + PROCESS, True
    counted = _count(model_type, path, device == "cuda" and model_type == "sdxl", variant)
    parameters = counted or PUBLISHED[model_type]
    weights = sum(count * _width(model_type, part, device) for part, count in parameters.items())
    return weights, weights + (DRAWING[model_type] if device == "cuda" else PROCESS), counted is not None


def _width(model_type: str, part: str, device: str) -> int:
    """Bytes of a parameter as it is loaded, see `recipes`."""
    return 4 if device == "cpu" or (model_type == "sdxl" and part == "vae") else 2


def _count(model_type: str, path: str, half: bool, variant: str | None) -> dict[str, float] | None:
    """Parameters of a local folder's parts; None for a hub id or what can't be read.

    Raises:
        Refused: a folder that is not such a model.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return None
    card = read_card(model_type, path, None, half, variant)
    return {
        part: float(sum(parameters(folder / name) for name in weights.of_part(card.files, part, card.variant)))
        for part in weights.PARTS[model_type]
    }


def parameters(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header.

    Raises:
        Refused: the file is cut short, or no safetensors.
    """
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        raise ModelRefused(f"{file}: can't be read as safetensors; get it anew") from None
    total = 0
    for shape in shapes:
        product = 1
        for size in shape:
            product *= size
        total += product
    return total
