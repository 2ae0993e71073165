"""A model's share of the index: its parts as they were listed, which of them can be read, and their rows.
Knows Parquet and checksums; nothing of why a row is wanted."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ray_app import layout
from ray_app.errors import OutputRefused, Refused, one_line
from ray_app.messages import LOG
from ray_app.schema import RECIPES_KEY, REQUIRED, SCHEMA, VERSION, VERSION_KEY
from ray_app.storage import Output

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LISTINGS = 6
"""How often a reader lists the parts before it gives up: they go one by one while an index is compacted."""

Identity = tuple[str, int, int]
"""A part is immutable: its path, size and modification time stand for its content."""

_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged part may raise."""


class NewerSchema(Refused):
    """A part of a later version of the schema: nobody here can read it, rewrite it or say that it is damaged."""


class Vanished(FileNotFoundError):
    """A part was there when the folder was listed and is gone now: list it again."""


@dataclasses.dataclass(frozen=True)
class Footer:
    """What a part says of itself: its number of rows, its columns, and its recipes in full, by fingerprint."""

    rows: int
    schema: pa.Schema
    recipes: dict[str, dict[str, Any]]


_footers: dict[Identity, Footer | str] = {}
"""What this process has read: each part's footer once, or why the part is damaged."""
_told: set[Identity] = set()


class Partition:
    """The parts of one listing.

    Args:
        identities: of all parts, by name.

    Attributes:
        footers: of the parts that can be read, by name.
        damaged: why the others can't be, by name.

    Raises:
        NewerSchema: a part is of a later version.
        Refused: a part can't be opened, though it may be whole (no permission, a failing disk).
        Vanished: a part went meanwhile.
    """

    def __init__(self, output: Output, identities: dict[str, Identity]):
        self.output, self._identities = output, identities
        self.footers: dict[str, Footer] = {}
        self.damaged: dict[str, str] = {}
        for name, identity in identities.items():
            if identity not in _footers:
                try:
                    _footers[identity] = _read_footer(output, name)
                except _DAMAGE as error:
                    _footers[identity] = self._reason(name, error)
            footer = _footers[identity]
            if isinstance(footer, Footer):
                self.footers[name] = footer
            else:
                self.damaged[name] = footer

    @classmethod
    def open(cls, output: Output, model_type: str) -> "Partition":
        """List a model's parts and read the footers that this process has not read yet."""
        return cls(output, _identities(output, part_names(output, model_type)))

    @property
    def names(self) -> list[str]:
        """The parts that can be read."""
        return list(self.footers)

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Those of all parts, by fingerprint."""
        return {name: recipe for footer in self.footers.values() for name, recipe in footer.recipes.items()}

    @property
    def schema(self) -> pa.Schema:
        """The index's columns, then those that some parts have in addition.

        Raises:
            Refused: two parts have one of these with different types.
        """
        fields = {field.name: field for field in SCHEMA}
        for name, footer in self.footers.items():
            for field in footer.schema:
                if fields.setdefault(field.name, field).type != field.type:
                    raise OutputRefused(
                        f"{self.output.at(name)}: column {field.name} is {field.type}, and"
                        f" {fields[field.name].type} in other parts; take the proxyqueue that wrote it"
                    )
        return pa.schema(list(fields.values()))

    def dataset(self) -> ds.Dataset:
        """The rows of all parts, read when they are asked for, each page compared with its checksum."""
        paths = [self.output.path(name) for name in self.footers]
        return ds.dataset(paths, self.schema, _CHECKED, self.output.filesystem)

    def read(self, columns: Sequence[str], whole: bool = False) -> pa.Table:
        """These columns of all rows, part after part; a part that turns out to be damaged is one from then on.

        Args:
            whole: read everything else too and forget it, so that a part damaged anywhere is found.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        tables = [schema.empty_table()]
        for name in self.names:
            try:
                with _opened(self.output, name) as file:
                    tables.append(_read_columns(file, schema, whole))
            except _DAMAGE as error:
                self._set_damaged(name, error)
        return pa.concat_tables(tables)

    def take(self, numbers: np.ndarray, schema: pa.Schema) -> pa.Table:
        """The rows of these numbers, their places in `read`, in the order of the numbers; read part by part.

        Args:
            schema: the columns to read.

        Raises:
            FileNotFoundError: a part is gone since it was listed.
        """
        starts = np.cumsum([0, *(footer.rows for footer in self.footers.values())])
        ascending = np.sort(numbers)
        bounds = np.searchsorted(ascending, starts)
        pieces = [schema.empty_table()]
        for name, start, (first, last) in zip(self.footers, starts, itertools.pairwise(bounds), strict=False):
            if first == last:
                continue
            with _opened(self.output, name) as file:
                table = _read_columns(file, schema)
            of_part = ascending[first:last] - start
            pieces.append(table if len(of_part) == table.num_rows else table.take(pa.array(of_part)))
        table = pa.concat_tables(pieces)
        del pieces
        in_order = np.searchsorted(ascending, numbers)
        return table if (in_order == np.arange(len(in_order))).all() else table.take(pa.array(in_order))

    def find_damage(self) -> bool:
        """Read every part whole, now that reading some of their columns has failed; whether any of them is damaged."""
        before = len(self.damaged)
        for name in self.names:
            try:
                with _opened(self.output, name) as file:
                    file.read()
            except _DAMAGE as error:
                self._set_damaged(name, error)
        return len(self.damaged) > before

    def tell_damage(self) -> None:
        """Say on stderr, once a process, which parts are damaged."""
        for name, reason in self.damaged.items():
            if self._identities[name] not in _told:
                _told.add(self._identities[name])
                LOG.warning(
                    f"{self.output.at(name)}: a damaged part of the index ({reason}); its rows don't"
                    " count, and generate sets it aside and draws its images again"
                )

    def _set_damaged(self, name: str, error: Exception) -> None:
        self.damaged[name] = _footers[self._identities[name]] = self._reason(name, error)
        del self.footers[name]

    def _reason(self, name: str, error: Exception) -> str:
        """Why a part is damaged. An error of the place is none of the part's."""
        path = self.output.at(name)
        if isinstance(error, FileNotFoundError):
            raise Vanished(path) from None
        if why := self.output.failed(error):
            raise OutputRefused(f"{path}: can't be read: {why}", path=path) from error
        return one_line(error, 200)


def retry_if_compacted(read: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A reader that begins anew with a fresh listing if a part is gone that it had listed.

    That is compaction: the part's rows stand in another by then.
    """

    @functools.wraps(read)
    def reader(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        for listing in range(1, LISTINGS):
            try:
                return read(*arguments, **named)
            except FileNotFoundError:
                time.sleep(0.05 * 2**listing)
        return read(*arguments, **named)

    return reader


def part_names(output: Output, model_type: str) -> list[str]:
    """The parts of a model's partition, by path under OUTPUT.

    Listed until two listings agree: a single one of a big folder can miss a part that comes meanwhile, and just as well
    the old ones that go because of it.
    """
    names: list[str] | None = None
    for _ in range(LISTINGS**2):
        before, names = names, output.list_names(layout.index_folder(model_type), "*.parquet")
        if names == before:
            break
    return names or []


def _read_footer(output: Output, name: str) -> Footer:
    with _opened(output, name) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
    metadata = schema.metadata or {}
    version = metadata.get(VERSION_KEY, VERSION.encode()).decode(errors="replace")
    if version != VERSION:
        raise NewerSchema(
            f"{output.at(name)}: version {version} of the index's schema, and this proxyqueue reads {VERSION};"
            " take the proxyqueue that wrote it"
        )
    known = {field.name: field.type for field in schema}
    if not known.keys() >= set(REQUIRED) or any(known.get(field.name, field.type) != field.type for field in SCHEMA):
        raise ValueError("its columns are not the index's")
    recipes = json.loads(metadata.get(RECIPES_KEY, b"{}"))
    if not isinstance(recipes, dict) or not all(isinstance(recipe, dict) for recipe in recipes.values()):
        raise ValueError("its recipes are not recipes")
    return Footer(rows, schema.remove_metadata(), recipes)


def _identities(output: Output, names: list[str]) -> dict[str, Identity]:
    """Of one listing a folder, not of a request a part."""
    entries = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        entries |= {f"{folder}/{entry.name}": entry for entry in output.entries(folder)}
    if gone := next((name for name in names if name not in entries), None):
        raise Vanished(output.at(gone))
    return {name: (output.at(name), entries[name].bytes, entries[name].mtime_ns) for name in names}


def _opened(output: Output, name: str) -> pq.ParquetFile:
    """A part, to be used in a `with`; its checksums are looked at wherever it is read."""
    return pq.ParquetFile(output.path(name), filesystem=output.filesystem, page_checksum_verification=True)


def _read_columns(file: pq.ParquetFile, schema: pa.Schema, whole: bool = False) -> pa.Table:
    """The schema's columns in its order; null where a part is too old to have one."""
    known = file.schema_arrow.names
    if whole:
        groups = (_conform(file.read_row_group(number), schema) for number in range(file.num_row_groups))
        return pa.concat_tables([schema.empty_table(), *groups])
    return _conform(file.read([name for name in schema.names if name in known]), schema)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
