"""A model's partition of the index: its parts as they were listed, which of them can be read, and their rows.
Knows Parquet and checksums; nothing of why a row is read."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ray_app.errors import OutputRefused, Refused, one_line
from ray_app.index.schema import HARDWARE_KEY, RECIPES_KEY, REQUIRED, SCHEMA, VERSION, VERSION_KEY, VERSIONS_KEY
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.output import Output

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAX_READ_ATTEMPTS = 6
"""How often a reader lists the parts before it gives up: compaction removes them one by one."""

Identity = tuple[str, int, int]
"""A part is immutable: its path, size and modification time identify its content."""

_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged part may raise."""


class NewerSchema(Refused):
    """A part of a later version of the schema: this version can't read it, rewrite it or tell whether it is damaged."""


class Vanished(FileNotFoundError):
    """A part existed when the folder was listed and no longer exists: list it again."""


@dataclasses.dataclass(frozen=True)
class Footer:
    """What a part says of itself.

    Attributes:
        recipes: in full, by fingerprint.
        versions: sets of versions of the packages that generated its images; {} where an older version recorded none.
        hardware: the kinds of hardware that generated them; empty where an older version recorded none.
    """

    rows: int
    schema: pa.Schema
    recipes: dict[str, dict[str, Any]]
    versions: list[dict[str, str]]
    hardware: list[dict[str, str]]


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
        Vanished: a part was removed meanwhile.
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
        recipes = {}
        for footer in self.footers.values():
            recipes |= footer.recipes
        return recipes

    @property
    def versions(self) -> list[dict[str, str]]:
        """The sets of versions of all parts, each once."""
        return _each_once(footer.versions for footer in self.footers.values())

    @property
    def hardware(self) -> list[dict[str, str]]:
        """The kinds of hardware of all parts, each once."""
        return _each_once(footer.hardware for footer in self.footers.values())

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
                        f"{self.output.display_path(name)}: column {field.name} is {field.type}, and"
                        f" {fields[field.name].type} in other parts; take the proxyqueue that wrote it"
                    )
        return pa.schema(list(fields.values()))

    def dataset(self) -> ds.Dataset:
        """The rows of all parts, read lazily; each page is compared with its checksum."""
        paths = [self.output.path(name) for name in self.footers]
        return ds.dataset(paths, self.schema, _CHECKED, self.output.filesystem)

    def read(self, columns: Sequence[str], whole: bool = False) -> pa.Table:
        """These columns of all rows, part after part; a part that turns out to be damaged is remembered as damaged.

        Args:
            whole: also read and discard everything else, so that a part damaged anywhere is found.
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
        """The rows with these numbers, counted as `read` returns them, in the order of the numbers; read part by part.

        Args:
            schema: the columns to read.

        Raises:
            FileNotFoundError: a part no longer exists.
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
            numbers_in_part = ascending[first:last] - start
            if len(numbers_in_part) < table.num_rows:
                table = table.take(pa.array(numbers_in_part))
            pieces.append(table)
        table = pa.concat_tables(pieces)
        del pieces  # they may be most of the memory in use: the copy below should not add to them
        positions = np.searchsorted(ascending, numbers)
        is_in_order = (positions == np.arange(len(positions))).all()
        return table if is_in_order else table.take(pa.array(positions))

    def find_damage(self) -> bool:
        """Read every part whole, now that reading some of their columns has failed; whether any of them is damaged."""
        damaged_before = len(self.damaged)
        for name in self.names:
            try:
                with _opened(self.output, name) as file:
                    file.read()
            except _DAMAGE as error:
                self._set_damaged(name, error)
        return len(self.damaged) > damaged_before

    def tell_damage(self) -> None:
        """Say on stderr, once per process, which parts are damaged."""
        for name, reason in self.damaged.items():
            if self._identities[name] not in _told:
                _told.add(self._identities[name])
                LOG.warning(
                    f"{self.output.display_path(name)}: a damaged part of the index ({reason}); its rows are ignored;"
                    " the next generate quarantines it in .set_aside and regenerates its images"
                )

    def _set_damaged(self, name: str, error: Exception) -> None:
        self.damaged[name] = _footers[self._identities[name]] = self._reason(name, error)
        del self.footers[name]

    def _reason(self, name: str, error: Exception) -> str:
        """Why a part is damaged. Raises if the place is to blame instead, which says nothing about the part."""
        path = self.output.display_path(name)
        if isinstance(error, FileNotFoundError):
            raise Vanished(path) from None
        if why := self.output.failed(error):
            raise OutputRefused(f"{path}: can't be read: {why}", path=path) from error
        return one_line(error, 200)


def retry_if_compacted(read: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A reader that starts over with a fresh listing if a part that it had listed no longer exists.

    That happens during compaction: the part's rows are in another part by then.
    """

    @functools.wraps(read)
    def reader(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        for listing in range(1, MAX_READ_ATTEMPTS):
            try:
                return read(*arguments, **named)
            except FileNotFoundError:
                time.sleep(0.05 * 2**listing)
        return read(*arguments, **named)

    return reader


def part_names(output: Output, model_type: str) -> list[str]:
    """The parts of a model's partition, by path under OUTPUT.

    Listed until two listings agree: during a compaction, a single listing of a big folder can miss the new part and
    the old parts that it replaces.
    """
    folder = layout.index_folder(model_type)
    names = output.list_names(folder, "*.parquet")
    for _ in range(MAX_READ_ATTEMPTS**2 - 1):
        previous_names, names = names, output.list_names(folder, "*.parquet")
        if names == previous_names:
            break
    return names


def _read_footer(output: Output, name: str) -> Footer:
    with _opened(output, name) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
    metadata = schema.metadata or {}
    version = metadata.get(VERSION_KEY, VERSION.encode()).decode(errors="replace")
    if version != VERSION:
        raise NewerSchema(
            f"{output.display_path(name)}: version {version} of the index's schema, and this proxyqueue reads"
            f" {VERSION}; take the proxyqueue that wrote it"
        )
    type_of_column = {field.name: field.type for field in schema}
    has_required = type_of_column.keys() >= set(REQUIRED)
    has_other_type = any(type_of_column.get(field.name, field.type) != field.type for field in SCHEMA)
    if not has_required or has_other_type:
        raise ValueError("its columns are not the index's")
    recipes = json.loads(metadata.get(RECIPES_KEY, b"{}"))
    if not isinstance(recipes, dict) or not all(isinstance(recipe, dict) for recipe in recipes.values()):
        raise ValueError("its recipes are not recipes")
    versions = json.loads(metadata.get(VERSIONS_KEY, b"[{}]"))
    if not isinstance(versions, list) or not all(_maps_texts(one) for one in versions):
        raise ValueError("its versions are not versions")
    hardware = json.loads(metadata.get(HARDWARE_KEY, b"[]"))
    if not isinstance(hardware, list) or not all(_maps_texts(one) for one in hardware):
        raise ValueError("its hardware is not hardware")
    return Footer(rows, schema.remove_metadata(), recipes, versions, hardware)


def _each_once(lists: Iterable[list[dict[str, str]]]) -> list[dict[str, str]]:
    every = itertools.chain.from_iterable(lists)
    return [dict(items) for items in dict.fromkeys(tuple(sorted(one.items())) for one in every)]


def _maps_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _identities(output: Output, names: list[str]) -> dict[str, Identity]:
    """Each part's identity, by name; costs one listing per folder, not one request per part."""
    entries = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        entries |= {f"{folder}/{entry.name}": entry for entry in output.entries(folder)}
    if vanished := next((name for name in names if name not in entries), None):
        raise Vanished(output.display_path(vanished))
    return {name: (output.display_path(name), entries[name].bytes, entries[name].mtime_ns) for name in names}


def _opened(output: Output, name: str) -> pq.ParquetFile:
    """A part, to be used in a `with`; every page that is read is compared with its checksum."""
    return pq.ParquetFile(output.path(name), filesystem=output.filesystem, page_checksum_verification=True)


def _read_columns(file: pq.ParquetFile, schema: pa.Schema, whole: bool = False) -> pa.Table:
    """The schema's columns in its order; null where a part is too old to have one."""
    if whole:
        groups = (_conform(file.read_row_group(number), schema) for number in range(file.num_row_groups))
        return pa.concat_tables([schema.empty_table(), *groups])
    columns_of_part = file.schema_arrow.names
    return _conform(file.read([name for name in schema.names if name in columns_of_part]), schema)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(table[field.name])
        else:
            columns.append(pa.nulls(table.num_rows, field.type))
    return pa.table(columns, schema=schema)
