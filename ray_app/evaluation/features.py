"""The vectors that an encoder gave images and texts, by checksum, text and name: what scores are computed from.
Knows the rows of features; nothing of queries or scores.

Of several rows of one image, text or name the last counts, parts in the order of their names.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds

from actors import encoders
from ray_app.errors import InputRefused, OutputRefused
from ray_app.features.parts import OK, FeatureParts, encoders_of, to_numpy
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

COLUMNS = ("sha256", "text", "name", "vector", "revision", "preprocessing")
WRITE_THEM = "`proxyqueue features` writes them"


def image_key(name: int | str) -> str:
    """An image's id in the form in which ids are compared: "000000123456" and 123456 are the same."""
    text = str(name)
    return (text.lstrip("0") or "0") if text.isdecimal() else text


@dataclasses.dataclass
class Features:
    """The usable vectors of one encoder, and the row of each image, text and name."""

    encoder: str
    recipe: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its "revision", and the "preprocessing" of images."""
    of_image: dict[str, int] = dataclasses.field(default_factory=dict)
    """Row by sha256."""
    of_text: dict[str, int] = dataclasses.field(default_factory=dict)
    of_name: dict[str, int] = dataclasses.field(default_factory=dict)
    """Row by `image_key` of the name."""
    sha256_of_name: dict[str, str] = dataclasses.field(default_factory=dict)
    blocks: list[np.ndarray] = dataclasses.field(default_factory=list)
    """float32 (rows, D) each."""

    def count(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.blocks))

    @property
    def width(self) -> int:
        """D, the length of each vector."""
        return self.blocks[0].shape[1]

    def unit_vectors(self, rows: Any) -> np.ndarray:
        """The vectors of these rows, each of length 1: float32 (len(rows), D)."""
        rows = np.asarray(rows, np.int64)
        vectors = np.empty((len(rows), self.width), np.float32)
        start = 0
        for block in self.blocks:
            is_here = (rows >= start) & (rows < start + len(block))
            vectors[is_here] = block[rows[is_here] - start]
            start += len(block)
        vectors /= lengths(vectors)[:, None]
        return vectors


def lengths(vectors: np.ndarray) -> np.ndarray:
    """The Euclidean length of each row."""
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def read(output: Output, encoder: str | None) -> Features:
    """All vectors of one encoder, by default of the only one. Damaged parts are named on stderr and left out.

    Args:
        encoder: its folder's name, a hub id or a short name.

    Raises:
        Refused: no features, several encoders, revisions or preprocessings, vectors that differ in length, are not
            finite or are zero.
    """
    features = Features(_choose_encoder(output, encoder))
    parts = FeatureParts(output, features.encoder)
    where = output.display_path(parts.folder)
    for table in parts.tables(COLUMNS, only=ds.field("status") == OK):
        _add(features, table, where)
    if not features.blocks:
        raise OutputRefused(f"{where}: no vectors; {WRITE_THEM}")
    return features


def _choose_encoder(output: Output, encoder: str | None) -> str:
    existing = encoders_of(output)
    where = output.display_path(layout.FEATURES)
    if not existing:
        raise OutputRefused(f"{where}: no features; {WRITE_THEM}")
    if encoder is None:
        if len(existing) > 1:
            raise InputRefused(f"{where}: features of {', '.join(existing)}; choose one with --encoder", flag="encoder")
        return existing[0]
    name = encoder if encoder in existing else encoders.folder_name(encoders.full_name(encoder))
    if name not in existing:
        raise InputRefused(f"--encoder {encoder}: no features of it; {where} has {', '.join(existing)}", flag="encoder")
    return name


def _add(features: Features, table: pa.Table, where: str) -> None:
    """Take the rows of a part."""
    if not table.num_rows:
        return
    _check_recipe(features, table, where)
    if table["vector"].null_count:
        raise OutputRefused(f"{where}: a row with status ok has no vector; encode again")
    start, vectors = features.count(), to_numpy(table["vector"])
    _check_values(vectors, table, where)
    features.blocks.append(vectors)
    for column, rows in (("sha256", features.of_image), ("text", features.of_text)):
        rows.update((key, start + row) for row, key in enumerate(table[column].to_pylist()) if key is not None)
    for row, (name, sha256) in enumerate(zip(table["name"].to_pylist(), table["sha256"].to_pylist(), strict=True)):
        if name is not None:
            features.of_name[image_key(name)] = start + row
            features.sha256_of_name[image_key(name)] = sha256 or ""


def _check_recipe(features: Features, table: pa.Table, where: str) -> None:
    """Raise Refused for vectors of another revision, or of images that were prepared differently."""
    is_image = pc.is_valid(table["sha256"])
    values = {"revision": table["revision"], "preprocessing": table["preprocessing"].filter(is_image)}
    for field, column in values.items():
        for value in column.fill_null("").unique().to_pylist():
            other = features.recipe.setdefault(field, value)
            if value != other:
                raise OutputRefused(
                    f"{where}: {field} {value} of {features.encoder}, other vectors are of {other};"
                    f" vectors of two {field}s can't be compared: remove one and encode again"
                )


def _check_values(vectors: np.ndarray, table: pa.Table, where: str) -> None:
    """Raise Refused for the first vector that has no direction."""
    length = lengths(vectors)
    is_bad = ~np.isfinite(length) | (length == 0)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        of = next(table[name][row].as_py() for name in ("name", "text", "sha256") if table[name][row].is_valid)
        fault = "is all zeros" if length[row] == 0 else "has NaN or infinite values"
        raise OutputRefused(f"{where}: the vector of {of!r} {fault}; remove its part and encode again")
