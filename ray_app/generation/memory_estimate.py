"""How much memory a model needs: its parameters in the dtypes they are loaded in, and what generating takes besides.
Knows safetensors' headers and published sizes; nothing of clusters."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from actors import memory, tiny, weights
from actors.families import FAMILIES, Family
from ray_app.errors import ModelRefused
from ray_app.generation.model_card import ModelCard, read_card
from ray_app.generation.vae_card import VaeCard, default_dtype, read_vae

WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a parameter, by its dtype."""
PROCESS = 1e9
"""Bytes of a worker's process with torch and diffusers loaded."""


OVERHEAD = 1.2e9
"""Bytes of a GPU that the CUDA context, the libraries' workspaces and fragments take; not measured on a card yet."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are denoised together, of a size in pixels."""

    images: int
    height: int
    width: int
    is_guided: bool = False


def needed(
    model_type: str,
    path: str,
    device: str,
    variant: str | None = None,
    batch: Batch | None = None,
    vae_path: str | None = None,
    vae_dtype: str | None = None,
) -> tuple[float, float, bool]:
    """Bytes of the weights, bytes in all that one actor needs on its device, and whether the files were read for it.

    Args:
        batch: of a GPU; by default as many images of 512 pixels as are denoised together by default.
        vae_path: the VAE that replaces the model's own. One that is not a folder here counts as a published one.
        vae_dtype: by default the one that its config leads to; without a config here that of the family.
    """
    if path == tiny.NAME:
        return 0.01e9, 0.01e9 + PROCESS, True
    family = FAMILIES[model_type]
    dtype = family.dtypes[device]
    card = _card(model_type, path, dtype == "float16", variant)
    vae = read_vae(vae_path, None) if vae_path and Path(vae_path).expanduser().is_dir() else None
    if vae_dtype is None:
        config = vae.config if vae else card.vae_config if card and not vae_path else {}
        vae_dtype = default_dtype(family, dtype, config)
    counts = dict(_count(card) if card else family.published_parameters)
    if vae_path:
        counts["vae"] = _count_vae(vae) if vae else family.published_parameters["vae"]
    loaded = _add_up(counts, dtype, vae_dtype)
    besides = PROCESS if device == "cpu" else generating(family, batch or _default_batch(family), vae_dtype) + OVERHEAD
    return loaded, loaded + besides, card is not None


def generating(family: Family, batch: Batch, vae_dtype: str | None = None) -> float:
    """Bytes of a GPU that the published models need besides their weights: to denoise a batch, or to decode it.

    What a batch's denoising held is free again when it is decoded, `memory.DECODE_PIXELS` at a time.
    """
    pixels = batch.height * batch.width
    denoising = family.denoising_bytes(batch.images, pixels, batch.is_guided)
    chunk = min(batch.images * pixels, max(pixels, memory.DECODE_PIXELS))
    width = WIDTHS[vae_dtype or family.vae_dtype or family.dtypes["cuda"]]
    return max(denoising, family.decoding_bytes * chunk * width / WIDTHS["float32"])


def _default_batch(family: Family) -> Batch:
    return Batch(family.batch_size_at_512, 512, 512)


def find_smallest_family() -> str:
    """The family whose published models need the least memory of a GPU."""
    needs = {}
    for name, family in FAMILIES.items():
        dtype = family.dtypes["cuda"]
        model = _add_up(family.published_parameters, dtype, family.vae_dtype or dtype)
        needs[name] = model + generating(family, _default_batch(family))
    return min(needs, key=needs.__getitem__)


def _add_up(parameters: Mapping[str, float], dtype: str, vae_dtype: str) -> float:
    """Bytes of the parameters of all parts."""
    return sum(count * WIDTHS[vae_dtype if part == "vae" else dtype] for part, count in parameters.items())


def _card(model_type: str, path: str, half: bool, variant: str | None) -> ModelCard | None:
    """The card of a local folder; None for a hub id.

    Raises:
        Refused: a folder that is not such a model.
    """
    return read_card(model_type, path, None, half, variant) if Path(path).expanduser().is_dir() else None


def _count(card: ModelCard) -> dict[str, float]:
    """Parameters of a local folder's parts."""
    return {
        part: float(sum(parameters(card.folder / name) for name in weights.of_part(card.files, part, card.variant)))
        for part in weights.parts(card.model_type)
    }


def _count_vae(card: VaeCard) -> float:
    return float(sum(parameters(card.folder / name) for name in card.files if name != weights.VAE_CONFIG))


def parameters(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header.

    Raises:
        Refused: the file is truncated, or not a safetensors file.
    """
    try:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        raise ModelRefused(f"{file}: can't be read as safetensors; download it again") from None
    total = 0
    for shape in shapes:
        product = 1
        for size in shape:
            product *= size
        total += product
    return total
