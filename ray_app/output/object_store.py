"""OUTPUT in an object store (s3://, gs://, abfs://), where a PUT is atomic: no staging, no renames, no locks.
Knows objects and listings; `remote` and `retry` say which errors are transient."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray_app.errors import OutputRefused
from ray_app.output import layout, remote
from ray_app.output.output import Entry, Output, Writer


class ObjectStoreOutput(Output):
    """An OUTPUT under a URL. A file exists once its PUT has ended, and is whole; a killed upload leaves no file.

    Two processes can rewrite the same index at the same time: stores have no locks.
    """

    reachable_from_all_nodes = True
    parallel_requests = 16

    def __init__(self, url: str):
        self._connection = url
        filesystem, self._prefix = remote.connect(url)
        super().__init__(url.split("?")[0].rstrip("/"), filesystem)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStoreOutput, (self._connection,)  # credentials stay where they are: each node has its own

    def path(self, relative: str) -> str:
        return f"{self._prefix}/{relative}" if relative else self._prefix

    def exists(self) -> bool:
        return next(self.entries(""), None) is not None

    def check_writable(self) -> None:
        """Raise Refused unless the bucket exists. Whether it accepts files shows only with a run's first file."""
        from pyarrow.fs import FileType

        bucket = self._prefix.split("/")[0]
        try:
            with remote.as_os_error(self.url, action="reached"):
                bucket_info = self.filesystem.get_file_info(bucket)
        except OSError as error:
            raise OutputRefused(f"--output_base_path {self.url}: {error.strerror}", flag="output_base_path") from error
        if bucket_info.type == FileType.NotFound:
            raise OutputRefused(
                f"--output_base_path {self.url}: bucket {bucket} does not exist; create it first",
                flag="output_base_path",
            )

    def writer(self, run_id: str) -> "ObjectStoreWriter":
        return ObjectStoreWriter(self, run_id)

    def failed(self, error: Exception) -> str | None:
        return remote.reason(error) or super().failed(error)

    def open(self, relative: str) -> Any:
        with remote.as_os_error(self.display_path(relative), action="read"):
            return super().open(relative)

    def entries(self, folder: str) -> Iterator[Entry]:
        return self._list(folder, recursive=False)

    def files(self, folder: str) -> Iterator[Entry]:
        return (entry for entry in self._list(folder, recursive=True) if entry.is_file)

    def _list(self, folder: str, recursive: bool) -> Iterator[Entry]:
        """One request per thousand objects."""
        from pyarrow.fs import FileSelector, FileType

        base = self.path(folder)
        selector = FileSelector(base, allow_not_found=True, recursive=recursive)
        with remote.as_os_error(self.display_path(folder), action="listed"):
            infos = self.filesystem.get_file_info(selector)
        for info in infos:
            name = info.path.removeprefix(f"{base}/")
            kind = info.type
            yield Entry(name, kind == FileType.Directory, kind == FileType.File, info.size or 0, info.mtime_ns or 0)

    def remove(self, relative: str) -> None:
        with contextlib.suppress(FileNotFoundError), remote.as_os_error(self.display_path(relative), action="removed"):
            self.filesystem.delete_file(self.path(relative))

    def remove_empty(self, folder: str) -> None:
        """Folders exist only as prefixes of names, but Arrow creates empty objects to stand for them."""
        if next(self.files(folder), None) is None:
            with (
                contextlib.suppress(FileNotFoundError),
                remote.as_os_error(self.display_path(folder), action="removed"),
            ):
                self.filesystem.delete_dir(self.path(folder))

    def quarantine(self, relative: str) -> None:
        folder, _, name = f"{layout.QUARANTINE}/{relative}".rpartition("/")
        taken = {entry.name for entry in self.entries(folder)}
        number = 0
        while (aside := f"{name}.{number}" if number else name) in taken:
            number += 1
        with (
            contextlib.suppress(FileNotFoundError),
            remote.as_os_error(self.display_path(relative), action="quarantined"),
        ):
            self.filesystem.move(self.path(relative), self.path(f"{folder}/{aside}"))

    def sync(self, relative: str) -> None:
        """A PUT that has ended is durable."""

    def locked(self, folder: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def remove_staging(self, run_id: str) -> None:
        """Nothing is staged."""

    def staging_age(self, run_id: str) -> float:
        return 0.0

    def now(self) -> float:
        """This host's clock: stores refuse requests of hosts whose clock is far from their own."""
        return time.time()


class ObjectStoreWriter(Writer):
    """Writes each file with one PUT, or one upload in pieces that is seen when it has ended."""

    def begin(self) -> None:
        self.output.check_writable()

    def write(self, relative: str, data: bytes) -> None:
        self._try_for_a_while(relative, lambda: self._put(relative, data))

    def _put(self, relative: str, data: bytes) -> None:
        with remote.as_os_error(self.output.display_path(relative), action="written"), self._open(relative) as stream:
            stream.write(data)  # all in one call: if it is interrupted, the stream is closed with all or none

    def _open(self, relative: str) -> Any:
        return self.output.filesystem.open_output_stream(self.output.path(relative))

    def write_with(self, relative: str, write: Callable[[Any], object]) -> None:
        content = io.BytesIO()
        write(content)
        self.write(relative, content.getvalue())
