"""Reads the vectors that an encoder gave images and texts: OUTPUT/features/encoder=NAME/part-*.parquet.
Knows the files' columns; nothing of queries or scores.

Columns: `sha256` (of an image's bytes; null for texts), `text` (null for images), `name` (what an image is called: a
file's stem or a gallery's id; null where it has no name), `vector` (fixed_size_list<float32>, not normalised),
`encoder`, `revision`, `preprocessing`, `status` (ok or failed), `error_type`, `error_message`. Of several rows of one
image, text or name the last counts, parts in the order of their names.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ray_app.errors import InputRefused, OutputRefused, one_line
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

COLUMNS = ("sha256", "text", "name", "vector", "revision", "status")
WRITE_THEM = "`proxyqueue features` writes them"


def image_key(name: int | str) -> str:
    """An image's id in the form in which ids are compared: "000000123456" and 123456 are the same."""
    text = str(name)
    return (text.lstrip("0") or "0") if text.isdecimal() else text


@dataclasses.dataclass
class Features:
    """The usable vectors of one encoder, and the row of each image, text and name."""

    encoder: str
    revision: str = ""
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
    """All vectors of one encoder, by default of the only one.

    Raises:
        Refused: no features, several encoders or revisions, other columns, vectors that differ in length, are not
            finite or are zero.
    """
    features = Features(_choose_encoder(output, encoder))
    for part in output.list_names(layout.features_folder(features.encoder), "part-*.parquet"):
        _add_part(features, output, part)
    if not features.blocks:
        where = output.display_path(layout.features_folder(features.encoder))
        raise OutputRefused(f"{where}: no vectors; {WRITE_THEM}")
    return features


def _choose_encoder(output: Output, encoder: str | None) -> str:
    prefix = "encoder="
    encoders = [name[len(prefix) :] for name in output.folders(layout.FEATURES) if name.startswith(prefix)]
    where = output.display_path(layout.FEATURES)
    if not encoders:
        raise OutputRefused(f"{where}: no features; {WRITE_THEM}")
    if encoder is None and len(encoders) > 1:
        raise InputRefused(f"{where}: features of {', '.join(encoders)}; choose one with --encoder", flag="encoder")
    if encoder is not None and encoder not in encoders:
        raise InputRefused(f"--encoder {encoder}: no features of it; {where} has {', '.join(encoders)}", flag="encoder")
    return encoder or encoders[0]


def _add_part(features: Features, output: Output, part: str) -> None:
    where = output.display_path(part)
    table = _read_part(output, part)
    table = (
        table.filter(pc.equal(table["status"], "ok")) if pc.any(pc.not_equal(table["status"], "ok")).as_py() else table
    )
    if not table.num_rows:
        return
    _check_revision(features, table, where)
    start = features.count()
    for chunk in table["vector"].chunks:
        vectors = _as_matrix(chunk, where)
        if features.blocks and vectors.shape[1] != features.width:
            raise OutputRefused(
                f"{where}: vectors of {vectors.shape[1]} values, others of {features.encoder} have {features.width};"
                " remove the wrong parts and encode again"
            )
        features.blocks.append(vectors)
    _check_values(features, table, start, where)
    for column, rows in (("sha256", features.of_image), ("text", features.of_text)):
        rows.update((key, start + row) for row, key in enumerate(table[column].to_pylist()) if key is not None)
    for row, (name, sha256) in enumerate(zip(table["name"].to_pylist(), table["sha256"].to_pylist(), strict=True)):
        if name is not None:
            features.of_name[image_key(name)] = start + row
            features.sha256_of_name[image_key(name)] = sha256 or ""


def _read_part(output: Output, part: str) -> pa.Table:
    where = output.display_path(part)
    try:
        with output.open(part) as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in COLUMNS if name not in parquet.schema_arrow.names]
            if missing:
                raise OutputRefused(
                    f"{where}: no column {missing[0]!r}; it is not a part that `proxyqueue features` wrote"
                )
            return parquet.read(columns=list(COLUMNS), use_threads=False)
    except pa.ArrowException as error:
        raise OutputRefused(f"{where}: can't be read: {one_line(error, 200)}; remove it and encode again") from None


def _as_matrix(chunk: pa.Array, where: str) -> np.ndarray:
    kind = chunk.type
    if not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        raise OutputRefused(f"{where}: column 'vector' is {kind}, not a fixed_size_list of float32")
    if chunk.null_count:
        raise OutputRefused(f"{where}: a row with status ok has no vector; encode again")
    return chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), kind.list_size)


def _check_revision(features: Features, table: pa.Table, where: str) -> None:
    for revision in table["revision"].fill_null("").unique().to_pylist():
        if features.blocks and revision != features.revision:
            raise OutputRefused(
                f"{where}: revision {revision} of {features.encoder}, other vectors are of {features.revision};"
                " vectors of two revisions can't be compared: remove one and encode again"
            )
        features.revision = revision


def _check_values(features: Features, table: pa.Table, start: int, where: str) -> None:
    """Raise Refused for the first vector of a part that has no direction."""
    block_start = 0
    for block in features.blocks:
        if block_start >= start:
            length = lengths(block)
            is_bad = ~np.isfinite(length) | (length == 0)
            if is_bad.any():
                row = block_start - start + int(np.argmax(is_bad))
                of = next(table[name][row].as_py() for name in ("name", "text", "sha256") if table[name][row].is_valid)
                fault = "is all zeros" if length[int(np.argmax(is_bad))] == 0 else "has NaN or infinite values"
                raise OutputRefused(f"{where}: the vector of {of!r} {fault}; remove the part and encode again")
        block_start += len(block)
