"""The parts of OUTPUT/features: one pinned Parquet schema, one row per vector, and reading them.
Knows columns and files; nothing of what is encoded."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from actors import encoders
from ray_app.errors import OutputRefused, one_line
from ray_app.index.part_writer import PartWriter
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.output import Output, Writer

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

OK, FAILED = "ok", "failed"

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "sha256": (pa.string(), "of the image's file, hex; null for texts, and where the file can't be read"),
    "text": (pa.string(), "what was encoded; null for images"),
    "name": (pa.string(), "an image of OUTPUT: its path; of another folder: its name without ending; null for texts"),
    "vector": (pa.list_(pa.float32()), "as the encoder gives it, not normalised, of fixed size; null where it failed"),
    "encoder": (pa.string(), "hub id, or folder"),
    "revision": (pa.string(), "commit of the hub, or a hash of the folder's files"),
    "preprocessing": (pa.string(), "targetpad or model; of texts that of the run"),
    "status": (pa.string(), "ok or failed"),
    "error_type": (pa.string(), "why it failed"),
    "error_message": (pa.string(), "in words"),
}
"""Every column: type and meaning. In the files `vector` is a list of fixed size, that of the encoder."""

ITEM = ("sha256", "text", "name")
RECIPE = ("encoder", "revision", "preprocessing")
DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What reading a damaged part may raise."""


def schema(vector_size: int) -> pa.Schema:
    """The schema of an encoder's parts."""
    fields = {name: kind for name, (kind, _) in COLUMNS.items()}
    return pa.schema({**fields, "vector": pa.list_(pa.float32(), vector_size)})


def encoders_of(output: Output) -> list[str]:
    """The safe names of the encoders that an output has features of."""
    prefix = layout.features_folder("").removeprefix(f"{layout.FEATURES}/")
    names = output.folders(layout.FEATURES)
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


class FeatureParts:
    """The features of one encoder's folder.

    Args:
        name: the safe name of the encoder, see `actors.encoders.folder_name`.

    Attributes:
        names: of the parts that can be read.
        damaged: why the others can't be, by name.
        vector_size: numbers of a vector; None without a part.

    Raises:
        Refused: a part can't be opened, though it may be whole, or two parts have vectors of different sizes.
    """

    def __init__(self, output: Output, name: str):
        self.output, self.folder = output, layout.features_folder(name)
        self.names: list[str] = []
        self.damaged: dict[str, str] = {}
        self.vector_size: int | None = None
        self.rows = 0
        for part in output.list_names(self.folder, "*.parquet"):
            try:
                with self._opened(part) as file:
                    size, rows = _vector_size(file.schema_arrow), file.metadata.num_rows
            except DAMAGE as error:
                self._set_damaged(part, error)
                continue
            if self.vector_size not in (None, size):
                raise OutputRefused(
                    f"{output.display_path(part)}: vectors of {size} numbers, and {self.vector_size} in other parts:"
                    " of another encoder of the same name; remove that encoder's parts"
                )
            self.vector_size = size
            self.names.append(part)
            self.rows += rows

    @classmethod
    def of(cls, output: Output, encoder: str) -> "FeatureParts":
        """Those of an encoder by its hub id or folder."""
        return cls(output, encoders.folder_name(encoder))

    def tables(self, columns: Sequence[str], only: ds.Expression | None = None) -> Iterator[pa.Table]:
        """These columns of each part's rows, oldest part first. Damaged parts are left out and told on stderr.

        Args:
            only: which rows.
        """
        self.tell_damage()
        for part in list(self.names):
            try:
                yield self._read(part, columns, only)
            except DAMAGE as error:
                self._set_damaged(part, error)
                self._tell(part, self.damaged[part])

    def read(self, columns: Sequence[str] = tuple(COLUMNS), only: ds.Expression | None = None) -> pa.Table:
        """The same as one table."""
        fields = schema(self.vector_size or 1)
        empty = pa.schema([fields.field(name) for name in columns]).empty_table()
        return pa.concat_tables([empty, *self.tables(columns, only)])

    def dataset(self) -> ds.Dataset:
        """The rows of all parts, read lazily; each page is compared with its checksum."""
        paths = [self.output.path(name) for name in self.names]
        return ds.dataset(paths, schema(self.vector_size or 1), _CHECKED, self.output.filesystem)

    def find_damage(self) -> dict[str, str]:
        """Read every part whole; why those can't be read that are damaged."""
        for part in list(self.names):
            try:
                with self._opened(part) as file:
                    for number in range(file.num_row_groups):
                        file.read_row_group(number)
            except DAMAGE as error:
                self._set_damaged(part, error)
        return self.damaged

    def tell_damage(self) -> None:
        """Say on stderr which parts are damaged."""
        for part, reason in self.damaged.items():
            self._tell(part, reason)

    def _read(self, part: str, columns: Sequence[str], only: ds.Expression | None) -> pa.Table:
        fields = schema(self.vector_size or 1)
        dataset = ds.dataset([self.output.path(part)], fields, _CHECKED, self.output.filesystem)
        return dataset.to_table(columns=list(columns), filter=only)

    def _opened(self, part: str) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.output.path(part), filesystem=self.output.filesystem, page_checksum_verification=True
        )

    def _set_damaged(self, part: str, error: Exception) -> None:
        """Raises if the place is to blame instead, which says nothing about the part."""
        path = self.output.display_path(part)
        why = None if isinstance(error, FileNotFoundError) else self.output.failed(error)
        if why:
            raise OutputRefused(f"{path}: can't be read: {why}", path=path) from error
        self.damaged[part] = one_line(error, 200)
        if part in self.names:
            self.names.remove(part)

    def _tell(self, part: str, reason: str) -> None:
        LOG.warning(
            f"{self.output.display_path(part)}: a damaged part of the features ({reason}); its rows are ignored,"
            " and the next features moves it to .set_aside and encodes them again"
        )


_CHECKED = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)


def _vector_size(fields: pa.Schema) -> int:
    """Raises ValueError where the columns are not those of features."""
    kind: Any = fields.field("vector").type if "vector" in fields.names else None
    if not isinstance(kind, pa.FixedSizeListType) or fields.remove_metadata() != schema(kind.list_size):
        raise ValueError("its columns are not those of features")
    return kind.list_size


def is_of(recipe: dict[str, str]) -> ds.Expression:
    """Rows of this encoder, revision and preprocessing."""
    return functools.reduce(lambda a, b: a & b, [ds.field(name) == recipe[name] for name in RECIPE])


class FeaturesWriter(PartWriter):
    """Collects the rows of a run and commits them as parts of an encoder's folder.

    Args:
        writer: where; its run id names the parts.
        encoder: hub id or folder.
        recipe: the columns `RECIPE`, the same for all rows.
        vector_size: numbers of a vector.
    """

    def __init__(self, writer: Writer, encoder: str, recipe: dict[str, str], vector_size: int):
        name = encoders.folder_name(encoder)
        super().__init__(writer, functools.partial(layout.features_part, name, writer.run_id))
        self.recipe, self.schema = recipe, schema(vector_size)

    def append(self, rows: pa.Table) -> None:
        """Take rows into the next part. Columns that are neither in the rows nor the same for all are null."""
        columns = []
        for field in self.schema:
            if field.name in rows.column_names:
                columns.append(rows[field.name].cast(field.type))
            else:
                value = self.recipe.get(field.name)
                columns.append(pa.repeat(pa.scalar(value, field.type), rows.num_rows))
        self.add(pa.table(columns, schema=self.schema))


def to_numpy(vectors: pa.ChunkedArray) -> np.ndarray:
    """Vectors without nulls as float32 (rows, vector_size)."""
    size = vectors.type.list_size
    return np.asarray(pc.list_flatten(vectors)).reshape(-1, size)
