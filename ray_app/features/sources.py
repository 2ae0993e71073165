"""What can be encoded: the images of an output, those of a folder or of Parquet files, each with its checksum.
Knows where images lie and what they are called; nothing of encoders."""

import functools
import hashlib
import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ray_app.errors import InputRefused, Refused, one_line
from ray_app.index.rows import find_newest, read_rows
from ray_app.index.schema import KEY
from ray_app.output import layout, remote
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import Checked

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

Item = TypeVar("Item")
Result = TypeVar("Result")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Files of a folder that count as images."""
NAME_COLUMNS = ("name", "id")
IMAGE_COLUMNS = ("image", "bytes", "path")
"""Columns of Parquet files: what an image is called, and the image, the first that exists."""
THREADS = 16
WINDOW = 1_000
"""Files that are read ahead at most, a few at a time: only their checksums are kept."""
ROWS_READ = 64
"""Rows of a Parquet file with images in it that are in memory at a time."""

IMAGES = pa.schema(
    {
        "sha256": pa.string(),
        "name": pa.string(),
        "place": pa.int8(),
        "path": pa.string(),
        "row_group": pa.int32(),
        "row": pa.int32(),
        "error_type": pa.string(),
        "error_message": pa.string(),
    }
)
"""An image: in which of the places, its file there, and within a Parquet file its row group and row; why its checksum
is not known."""

OWN, OTHER = 0, 1
"""Places: the output, and what --images names."""


def own_images(output: Output, model_types: list[str], steps: tuple[int, ...], snapshot: str | None) -> pa.Table:
    """The images of an output whose newest row is ok, `IMAGES`, with the checksums of their rows."""
    tables = [IMAGES.empty_table()]
    for model_type in model_types:
        rows = read_rows(output, model_type, [*KEY, "status", "path", "sha256"])
        rows = rows.take(pa.array(find_newest(rows)))
        is_selected = np.asarray(pc.and_(pc.equal(rows["status"], "ok"), pc.is_valid(rows["sha256"])))
        if steps:
            is_selected = is_selected & np.isin(np.asarray(rows["step"]), steps)
        if snapshot is not None:
            is_selected = is_selected & np.asarray(pc.equal(rows["snapshot"], snapshot))
        rows = rows.filter(pa.array(is_selected))
        tables.append(_images(OWN, sha256=rows["sha256"], name=rows["path"], path=rows["path"]))
    return pa.concat_tables(tables)


class Gallery:
    """Images of a folder, with those of its folders, or of Parquet files: one, or all of a folder.

    Args:
        url: a path, or the URL of an object store.

    Raises:
        Refused: it does not exist or has no images, or Parquet files without columns that are known.
    """

    def __init__(self, url: str):
        self.url = url
        is_file = url.split("?")[0].endswith(".parquet") and (remote.is_remote(url) or not Path(url).is_dir())
        folder, _, file = url.rpartition("/") if is_file else (url, "", "")
        try:
            self.place = open_output(folder or ("/" if url.startswith("/") else "."))
            entries = sorted(entry.name for entry in self.place.files("") if not layout.is_clutter(entry.name))
        except (Refused, OSError) as error:
            raise InputRefused(f"--images {url}: can't be read: {one_line(error, 200)}", flag="images") from None
        self.parquet_files = [name for name in entries if name == file or (not file and name.endswith(".parquet"))]
        self.files = [] if file else [name for name in entries if name.lower().endswith(SUFFIXES)]
        if not entries or (file and not self.parquet_files):
            raise InputRefused(f"--images {url}: no such folder or Parquet file, or an empty one", flag="images")
        if self.parquet_files and not self.files:
            self.files = []
        elif self.files:
            self.parquet_files = []
        else:
            raise InputRefused(
                f"--images {url}: no image in it ({', '.join(SUFFIXES)}) and no Parquet file", flag="images"
            )

    def read(self) -> pa.Table:
        """Every image with its checksum, `IMAGES`; each file is read once, and only its checksum is kept.

        Raises:
            Refused: a Parquet file that can't be read or has no columns that are known.
        """
        if not self.parquet_files:
            return self._of_files([(name, _stem(name)) for name in self.files])
        return pa.concat_tables([self._of_parquet(file) for file in self.parquet_files])

    def _of_files(self, files: list[tuple[str, str]]) -> pa.Table:
        """Args: files: path in the place and name of each."""
        progress = Checked(len(files), "read")
        digests: list[tuple[str | None, str | None, str | None]] = []
        try:
            for digest in _map(functools.partial(_digest, self.place), (path for path, _ in files)):
                digests.append(digest)
                progress.add(1)
        finally:
            progress.close()
        sha256, error_type, error_message = zip(*digests, strict=True)
        paths, names = zip(*files, strict=True)
        return _images(OTHER, sha256=sha256, name=names, path=paths, error_type=error_type, error_message=error_message)

    def _of_parquet(self, file: str) -> pa.Table:
        try:
            with _parquet(self.place, file) as parquet:
                columns = self._columns(file, parquet.schema_arrow)
                if columns.is_path:
                    return self._of_files(_paths(file, parquet, columns))
                return _of_bytes(file, parquet, columns)
        except Refused:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputRefused(
                f"--images {self.place.display_path(file)}: can't be read: {one_line(error, 200)}", flag="images"
            ) from None

    def _columns(self, file: str, fields: pa.Schema) -> "Columns":
        image = next((name for name in IMAGE_COLUMNS if name in fields.names), None)
        name = next((name for name in NAME_COLUMNS if name in fields.names), None)
        kind = fields.field(image).type if image else pa.null()
        is_struct = pa.types.is_struct(kind) and "bytes" in [field.name for field in kind]
        is_path = image == "path" and pa.types.is_string(kind)
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if image is None or not (is_struct or is_path or is_bytes) or (is_bytes and name is None):
            raise InputRefused(
                f"--images {self.place.display_path(file)}: has columns {', '.join(fields.names)[:200]}; it needs"
                " 'path' (strings), or 'bytes' or 'image' (binary) with 'name' or 'id'",
                flag="images",
            )
        return Columns(image, name, is_path)


class Columns(NamedTuple):
    """The columns of a Parquet file that are read."""

    image: str
    name: str | None
    is_path: bool

    @property
    def names(self) -> list[str]:
        """Of both."""
        return [name for name in (self.image, self.name) if name]


def read_image(places: list[Output], image: dict[str, Any]) -> bytes:
    """An image's bytes, of a row of `IMAGES`.

    Raises:
        OSError, ArrowException: it can't be read.
    """
    place = places[image["place"]]
    if image["row_group"] is None:
        return place.read(image["path"])
    column = _read_row_group(place, image["path"], image["row_group"])
    return _bytes_of(column[image["row"]].as_py())


@functools.lru_cache(maxsize=2)
def _read_row_group(place: Output, file: str, number: int) -> pa.ChunkedArray:
    """The images of a row group: those of a batch are in the same one or in two."""
    with _parquet(place, file) as parquet:
        name = next(name for name in IMAGE_COLUMNS if name in parquet.schema_arrow.names)
        return parquet.read_row_group(number, [name])[name]


def _parquet(place: Output, file: str) -> pq.ParquetFile:
    return pq.ParquetFile(place.path(file), filesystem=place.filesystem)


def _paths(file: str, parquet: pq.ParquetFile, columns: Columns) -> list[tuple[str, str]]:
    """Path within the place and name of each row. Relative paths begin at the Parquet file's folder."""
    table = parquet.read(columns.names)
    paths = [posixpath.join(posixpath.dirname(file), path or "") for path in table[columns.image].to_pylist()]
    if columns.name is None:
        return [(path, _stem(path)) for path in paths]
    return list(zip(paths, map(str, table[columns.name].to_pylist()), strict=True))


def _of_bytes(file: str, parquet: pq.ParquetFile, columns: Columns) -> pa.Table:
    rows: dict[str, list[Any]] = {name: [] for name in ("sha256", "name", "row_group", "row")}
    progress = Checked(parquet.metadata.num_rows, "read")
    for group in range(parquet.num_row_groups):
        row = itertools.count()
        for batch in parquet.iter_batches(ROWS_READ, [group], columns.names):
            for values in batch.to_pylist():
                value, number = values[columns.image], next(row)
                data = _bytes_of(value)
                path = value.get("path") if isinstance(value, dict) else None
                name = values[columns.name] if columns.name else _stem(path or "") or f"{_stem(file)}_{group}_{number}"
                rows["sha256"].append(hashlib.sha256(data).hexdigest())
                rows["name"].append(str(name))
                rows["row_group"].append(group)
                rows["row"].append(number)
            progress.add(batch.num_rows)
    progress.close()
    return _images(OTHER, path=[file] * len(rows["row"]), **rows)


def _bytes_of(value: Any) -> bytes:
    """Of a binary column, or of one of structs as the datasets library writes it; nothing for null."""
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


def _digest(place: Output, path: str) -> tuple[str | None, str | None, str | None]:
    """A file's checksum, or the error's type and message."""
    try:
        return hashlib.sha256(place.read(path)).hexdigest(), None, None
    except OSError as error:
        return None, type(error).__name__, f"{path}: {error.strerror or one_line(error)}"


def _images(place: int, **columns: Any) -> pa.Table:
    rows = len(columns["name"])
    values = []
    for field in IMAGES:
        column = columns.get(field.name)
        if field.name == "place":
            values.append(pa.repeat(pa.scalar(place, pa.int8()), rows))
        elif column is None:
            values.append(pa.nulls(rows, field.type))
        else:
            values.append(column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type))
    return pa.table(values, schema=IMAGES)


def _map(do: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in order, some threads' worth at a time."""
    left = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while window := list(itertools.islice(left, WINDOW)):
            yield from pool.map(do, window)


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
