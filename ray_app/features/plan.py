"""The plan: images and texts that are selected, minus the vectors that exist, each once.
Knows tables only; no Ray, and no files but the parts of features."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ray_app.features import parts
from ray_app.features.parts import FeatureParts
from ray_app.features.sources import IMAGES

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

ITEMS = pa.schema(
    [
        ("item", pa.string()),
        *(IMAGES.field(name) for name in ("sha256", "place", "path", "row_group", "row")),
        ("text", pa.string()),
        ("names", pa.list_(pa.string())),
    ]
)
"""What is to be encoded: an image by its checksum, with the names that its rows get, or a text."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run has to do.

    `items` has a row per image or text to encode. `copies` are names, with their checksums, of images whose bytes are
    encoded under another name. `unreadable` are rows of `IMAGES` whose file could not be read.
    """

    images: int
    texts: int
    existing: int
    items: pa.Table
    copies: pa.Table
    unreadable: pa.Table

    @property
    def vectors(self) -> int:
        """Rows that are requested: one per image and name, one per text."""
        return self.images + self.texts

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.items.num_rows or self.copies.num_rows or self.unreadable.num_rows)

    def batches(self, batch_size: int) -> list[pa.Table]:
        """The items in batches, one per task of the cluster."""
        return [self.items.slice(start, batch_size) for start in range(0, self.items.num_rows, batch_size)]


def make_plan(images: pa.Table, texts: Sequence[str], features: FeatureParts, recipe: dict[str, str]) -> Plan:
    """Plan what is missing.

    Args:
        images: rows of `IMAGES`.
        features: what the encoder's folder has.
        recipe: the columns `parts.RECIPE`.
    """
    is_readable = pc.is_valid(images["sha256"])
    unreadable, images = images.filter(pc.invert(is_readable)), images.filter(is_readable)
    images = _distinct(images)
    done = features.read(parts.ITEM, parts.is_of(recipe) & (pc.field("status") == parts.OK))
    is_missing = pc.invert(pc.is_in(_keys(images), value_set=_keys(done).combine_chunks()))
    missing = images.filter(is_missing)
    has_vector = pc.is_in(missing["sha256"], value_set=done["sha256"].drop_null().combine_chunks())
    copies = missing.filter(has_vector).select(["sha256", "name"])
    to_encode = missing.filter(pc.invert(has_vector))
    text_column = pa.chunked_array([pa.array(list(texts), pa.string())])
    is_new = pc.invert(pc.is_in(text_column, value_set=done["text"].drop_null().combine_chunks()))
    new_texts = text_column.filter(is_new)
    existing = images.num_rows - missing.num_rows + len(texts) - len(new_texts)
    return Plan(
        images=images.num_rows + unreadable.num_rows,
        texts=len(texts),
        existing=existing,
        items=pa.concat_tables([_image_items(to_encode), _text_items(new_texts.to_pylist())]),
        copies=copies,
        unreadable=unreadable,
    )


def copied_rows(features: FeatureParts, copies: pa.Table, recipe: dict[str, str]) -> Iterator[pa.Table]:
    """Rows for names whose images' bytes are encoded under another one: the same vectors."""
    is_wanted = parts.is_of(recipe) & (pc.field("status") == parts.OK) & pc.field("sha256").isin(copies["sha256"])
    names: dict[str, list[str]] = {}
    for sha256, name in zip(copies["sha256"].to_pylist(), copies["name"].to_pylist(), strict=True):
        names.setdefault(sha256, []).append(name)
    for table in features.tables(["sha256", "vector", "status"], is_wanted):
        places, new_names = [], []
        for place, sha256 in enumerate(table["sha256"].to_pylist()):
            of_image = names.pop(sha256, [])
            places += [place] * len(of_image)
            new_names += of_image
        if new_names:
            yield table.take(pa.array(places)).append_column("name", pa.array(new_names))


def failed_rows(unreadable: pa.Table) -> pa.Table:
    """Rows of images whose file can't be read."""
    status = pa.array([parts.FAILED] * unreadable.num_rows)
    return unreadable.select(["sha256", "name", "error_type", "error_message"]).append_column("status", status)


def _distinct(images: pa.Table) -> pa.Table:
    """One row per checksum and name: the first."""
    firsts = [(name, "first") for name in images.column_names if name not in ("sha256", "name")]
    grouped = images.group_by(["sha256", "name"], use_threads=False).aggregate(firsts)
    return grouped.rename_columns([name.removesuffix("_first") for name in grouped.column_names]).select(IMAGES.names)


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """One string per checksum and name; null for texts."""
    keys = pc.binary_join_element_wise(table["sha256"], table["name"], "\n")
    return keys if isinstance(keys, pa.ChunkedArray) else pa.chunked_array([keys])


def _image_items(images: pa.Table) -> pa.Table:
    """One row per checksum, with all its names."""
    firsts = [(name, "first") for name in ("place", "path", "row_group", "row")]
    grouped = images.group_by("sha256", use_threads=False).aggregate([("name", "list"), *firsts])
    columns = {name.removesuffix("_first"): grouped[name] for name in grouped.column_names}
    columns |= {
        "item": grouped["sha256"],
        "names": grouped["name_list"],
        "text": pa.nulls(grouped.num_rows, pa.string()),
    }
    return pa.table([columns[field.name].cast(field.type) for field in ITEMS], schema=ITEMS)


def _text_items(texts: list[str]) -> pa.Table:
    rows = [
        {"item": f"text:{hashlib.sha256(text.encode()).hexdigest()}", "text": text, "names": [None]} for text in texts
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS)
