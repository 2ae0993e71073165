"""The table of memory and disk in docs/gpus.md is what the program's own estimate says."""

import pytest

from actors.families import FAMILIES
from ray_app.generation import memory_estimate
from ray_app.generation.memory_estimate import WIDTHS, Batch
from ray_app.generation.recipes import default_batch_size
from tests.conftest import ROOT

CARDS = (24, 48, 80)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MODELS = {
    "SDXL turbo": ("sdxl", False),
    "SDXL base, guided": ("sdxl", True),
    "FLUX.1 schnell, dev": ("flux", False),
}


def row(title: str, pixels: int) -> str:
    """A line of the table: GB on disk, of weights, and with the default batch; each card's largest batch that fits."""
    model_type, is_guided = MODELS[title]
    family = FAMILIES[model_type]

    def need(batch_size: int) -> tuple[float, float]:
        batch = Batch(batch_size, pixels, pixels, is_guided)
        weights, needs, _ = memory_estimate.needed(model_type, family.default_path, "cuda", batch=batch)
        return weights / 1e9, needs / 1e9

    disk = sum(family.published_parameters.values()) * WIDTHS[family.dtypes["cuda"]] / 1e9
    default = default_batch_size(model_type, "cuda", pixels, pixels)
    weights, needs = need(default)
    fitting = [[size for size in BATCH_SIZES if need(size)[1] <= card] for card in CARDS]
    most = " | ".join(str(sizes[-1]) if sizes else "no" for sizes in fitting)
    return f"| {title} | {pixels} px | {disk:.1f} GB | {weights:.1f} GB | {default}: {needs:.1f} GB | {most} |"


@pytest.mark.parametrize("pixels", [512, 1024])
@pytest.mark.parametrize("title", MODELS)
def test_the_page_says_what_the_estimate_says(title, pixels):
    page = (ROOT / "docs" / "gpus.md").read_text().splitlines()
    assert row(title, pixels) in page, f"docs/gpus.md lacks this line:\n{row(title, pixels)}"
