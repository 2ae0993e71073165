"""The page of `evaluate`: one HTML file with the findings, the table, the plots and chosen queries' images inside.
Knows what is shown; how it looks is in evaluation.html.jinja and evaluation.css."""

import base64
import dataclasses
import functools
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ray_app import page_templates
from ray_app.errors import InputRefused
from ray_app.evaluation.features import image_key
from ray_app.features import sources

HERE = Path(__file__).parent
PIXELS = 128
"""Longer side of an image on the page."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

ReadImage = Callable[[], bytes]


@dataclasses.dataclass(frozen=True)
class GroupShown:
    """A model and kind of snapshot as the page shows it."""

    name: str
    queries: int
    left_out: int
    sentences: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(
    facts: dict[str, Any], groups: Sequence[GroupShown], plots: dict[str, bytes], examples: Sequence[Any]
) -> str:
    """The page's text.

    Args:
        facts: title, encoder, revision, gallery (number of images), draws, seed, metric.
        plots: PNGs by their titles.
        examples: chosen queries, see `example`.
    """
    style = (HERE / "evaluation.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    shown_plots = [{"title": title, "source": _data_url(png, "png")} for title, png in plots.items()]
    return page_templates.load(HERE / "evaluation.html.jinja").render(
        style=style,
        style_hash=f"sha256-{digest}",
        groups=groups,
        plots=shown_plots,
        examples=examples,
        **facts,
    )


def thumbnail(read: ReadImage) -> str | None:
    """An image, made small, as a data URL; None if it can't be read."""
    try:
        with Image.open(io.BytesIO(read())) as image:
            image.draft("RGB", (PIXELS, PIXELS))
            small = image.convert("RGB")
    except OSError:
        return None
    small.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return _data_url(buffer.getvalue(), "jpeg")


class Photos:
    """The photos of a folder or a Parquet file by the ids of their names; without either, none.

    Raises:
        Refused: a folder that can't be listed, a Parquet file without images.
    """

    def __init__(self, url: str | None):
        self._reads: dict[str, ReadImage] = {}
        if url is not None and url.endswith(".parquet"):
            gallery = sources.Gallery(url)
            for row in gallery.read().to_pylist():
                read = functools.partial(sources.read_image, [gallery.place] * 2, row)
                self._reads[image_key(row["name"])] = read
        elif url is not None:
            self._reads = {image_key(path.stem): path.read_bytes for path in _list(url)}

    def thumbnail(self, name: str) -> str | None:
        """A photo as a data URL; None if it does not exist."""
        read = self._reads.get(name)
        return None if read is None else thumbnail(read)


def _list(folder: str) -> list[Path]:
    try:
        files = list(Path(folder).expanduser().iterdir())
    except OSError as error:
        raise InputRefused(f"--images {folder}: can't be listed: {error.strerror}", flag="images") from None
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
