"""The gallery: which images are ranked, in which order, and their vectors.
Knows names and features; nothing of methods or scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_app.errors import InputRefused
from ray_app.evaluation.features import Features, image_key
from ray_app.evaluation.queries import ScoredQuery
from ray_app.output import layout

MOST = 50
"""Images of a ranking: what CIRCO's server takes."""


@dataclasses.dataclass
class Gallery:
    """Images by position; of images with equal scores the one at the lower position comes first."""

    names: list[str]
    vectors: np.ndarray
    """float32 (images, D), each of length 1."""

    def __post_init__(self) -> None:
        self._positions = {name: position for position, name in enumerate(self.names)}

    def positions(self, names: Sequence[str]) -> list[int]:
        """Where these images are, -1 for others."""
        return [self._positions.get(name, -1) for name in names]

    def padded_positions(self, lists: Sequence[Sequence[str]]) -> np.ndarray:
        """A row of positions per list, filled up with -1: int64 (lists, longest)."""
        rows = np.full((len(lists), max(map(len, lists), default=0)), -1, np.int64)
        for row, names in zip(rows, lists, strict=True):
            row[: len(names)] = self.positions(names)
        return rows


def build(features: Features, own_images: set[str], file: str | None) -> Gallery:
    """The images that --gallery lists, in its order; else every named one that the output did not generate, by id.

    Args:
        own_images: sha256 of the output's images.

    Raises:
        Refused: a file that can't be read, names without vectors, an empty gallery.
    """
    if file is None:
        generated = {name for name, sha256 in features.sha256_of_name.items() if sha256 in own_images}
        # an image that was generated again has left its old vector, under the name that generate gives images
        generated |= {name for name in features.of_name if layout.is_image_file(f"{layout.COMBINED}/{name}.jpg")}
        names = [name for name in features.of_name if name not in generated]
        names.sort(key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        if not names:
            raise InputRefused(
                f"features of {features.encoder}: no gallery in them; encode its folder with `proxyqueue features"
                " --images FOLDER`, or list it with --gallery"
            )
    else:
        names = _read_names(file)
        missing = [name for name in names if name not in features.of_name]
        if missing:
            raise InputRefused(
                f"--gallery {file}: {len(missing):,} of {len(names):,} images have no vector of {features.encoder},"
                f" {missing[0]!r} for one; encode their folder with `proxyqueue features --images FOLDER`",
                flag="gallery",
            )
    return Gallery(names, features.unit_vectors([features.of_name[name] for name in names]))


def check_ground_truth(gallery: Gallery, queries: Sequence[ScoredQuery], path: str) -> None:
    """Raise Refused for a right image that the gallery lacks: no method could find it."""
    faults = []
    for query in queries:
        names = [*query.relevant, *([query.target] if query.target and query.relevant else [])]
        missing = [name for name, position in zip(names, gallery.positions(names), strict=True) if position < 0]
        faults += [(query.query_id, name) for name in dict.fromkeys(missing)]
    if faults:
        query_id, name = faults[0]
        raise InputRefused(
            f"{path}: query {query_id}: its right image {name} is not in the gallery of {len(gallery.names):,} images"
            f" ({len(faults):,} such ids); encode the whole gallery with `proxyqueue features --images FOLDER`,"
            " or correct --gallery",
            path=path,
        )


def _read_names(file: str) -> list[str]:
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputRefused(f"--gallery {file}: can't be read: {error.strerror}", flag="gallery") from None
    except UnicodeDecodeError:
        raise InputRefused(f"--gallery {file}: not UTF-8 text", flag="gallery") from None
    names = list(dict.fromkeys(image_key(line.strip()) for line in lines if line.strip()))
    if not names:
        raise InputRefused(f"--gallery {file}: no ids in it; one per line", flag="gallery")
    return names
