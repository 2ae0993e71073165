"""The files of one OUTPUT, on a filesystem or in an object store: reading them, and writing whole files.
Knows paths and bytes, nothing of images, rows or runs; each kind is a module, `local` and `object_store`."""

import abc
import collections
import contextlib
import fnmatch
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from ray_app.output import layout
from ray_app.output.retry import RetryPolicy

Item = TypeVar("Item")
Result = TypeVar("Result")


class Entry(NamedTuple):
    """A file or a folder of a listing."""

    name: str
    is_folder: bool
    is_file: bool
    """A regular file, or a link to one."""
    bytes: int
    mtime_ns: int


_retries: collections.defaultdict[str, RetryPolicy] = collections.defaultdict(RetryPolicy)
"""By run. Kept per process, not per Writer: tasks get a new Writer with each batch, and can't wait again for each."""

LATE_WRITERS_SECONDS, LATE_WRITERS_TRIES = 1.0, 5
"""For how long, and how often, staging is removed again after an interrupted run."""

Sink = Path | IO[bytes]
"""Where a library may write a file's content to."""


class Output(abc.ABC):
    """One OUTPUT. Made by `open_output`; files are written by its `Writer`.

    Paths are relative to OUTPUT, with forward slashes. Every OSError that it raises names the place (`filename`) and
    says what can't be done and why (`strerror`); it is a FileNotFoundError where something does not exist.
    """

    reachable_from_all_nodes = False
    """Whether every node of a cluster reaches it by the same name."""
    parallel_requests = 1
    """How many files are written or removed at a time: where each is a request, one after the other is slow."""

    def __init__(self, url: str, filesystem: Any):
        self.url = url
        """As messages name it: an absolute path, or s3://bucket/prefix."""
        self.filesystem = filesystem
        """The pyarrow filesystem that `path` is a path of."""

    def display_path(self, relative: str) -> str:
        """A file of OUTPUT as messages name it."""
        return f"{self.url}/{relative}"

    @abc.abstractmethod
    def path(self, relative: str) -> str:
        """A file of OUTPUT as `filesystem` names it."""

    @abc.abstractmethod
    def exists(self) -> bool:
        """Whether OUTPUT exists."""

    @abc.abstractmethod
    def check_writable(self) -> None:
        """Raise Refused where files can't be written; writes nothing itself."""

    @abc.abstractmethod
    def writer(self, run_id: str) -> "Writer":
        """What writes a run's files. Use `writing`, which also removes unfinished files."""

    @abc.abstractmethod
    def entries(self, folder: str) -> Iterator[Entry]:
        """A folder's files and folders; none if it does not exist."""

    @abc.abstractmethod
    def files(self, folder: str) -> Iterator[Entry]:
        """Every file below a folder, however deep, named by its path within the folder."""

    @abc.abstractmethod
    def remove(self, relative: str) -> None:
        """Remove a file, if it exists."""

    @abc.abstractmethod
    def remove_empty(self, folder: str) -> None:
        """Remove a folder and those below it, as far as they are empty."""

    @abc.abstractmethod
    def quarantine(self, relative: str) -> None:
        """Move a file to OUTPUT/.set_aside, under the path that it had, if it exists; overwrites nothing."""

    @abc.abstractmethod
    def sync(self, relative: str) -> None:
        """Wait until a file, or a folder's list of names, would survive a power cut."""

    @abc.abstractmethod
    def locked(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Hold a lock on a folder, where that is possible; raises Refused if another process holds it."""

    @abc.abstractmethod
    def remove_staging(self, run_id: str) -> None:
        """Remove what a run has staged, and the staging folder if no other run uses it."""

    @abc.abstractmethod
    def staging_age(self, run_id: str) -> float:
        """Seconds since something changed in a run's staging; 0 if it has none."""

    @abc.abstractmethod
    def now(self) -> float:
        """The time by the clock that stamps the files, in seconds: another host's may differ by minutes."""

    @contextlib.contextmanager
    def writing(self, run_id: str, others_write: bool = False) -> Iterator["Writer"]:
        """A run's writer; what it has staged is removed on every exit path.

        Args:
            others_write: other processes write with copies of it, and may end a moment after an interrupted run.
        """
        tries = LATE_WRITERS_TRIES if others_write else 1
        try:
            yield self.writer(run_id)
            tries = 1
        finally:
            self.remove_staging(run_id)
            for _ in range(tries - 1):
                time.sleep(LATE_WRITERS_SECONDS / LATE_WRITERS_TRIES)
                self.remove_staging(run_id)

    def failed(self, error: Exception) -> str | None:
        """Why a library could not read here, if the place is to blame; None if what it read is."""
        return os.strerror(error.errno) if isinstance(error, OSError) and error.errno is not None else None

    def open(self, relative: str) -> Any:
        """A file's content as a seekable stream of bytes, to be closed by the caller."""
        return self.filesystem.open_input_file(self.path(relative))

    def read(self, relative: str) -> bytes:
        """A file's content."""
        with self.open(relative) as file:
            return file.read()

    def list_names(self, folder: str, pattern: str) -> list[str]:
        """Sorted relative paths of a folder's files that match; empty if it does not exist.

        Files that an operating system makes by itself are skipped, see `layout.is_clutter`.
        """
        names = (entry.name for entry in self.entries(folder) if entry.is_file and not layout.is_clutter(entry.name))
        return [f"{folder}/{name}" for name in sorted(fnmatch.filter(names, pattern))]

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of a folder's folders."""
        return sorted(entry.name for entry in self.entries(folder) if entry.is_folder)

    def file_sizes(self, folder: str) -> dict[str, int]:
        """The files two levels below a step's folder (`combined/NAME`) with their sizes in bytes."""
        sizes = {}
        for subfolder in self.folders(folder):
            for entry in self.entries(f"{folder}/{subfolder}"):
                sizes[f"{subfolder}/{entry.name}"] = entry.bytes
        return sizes

    def step_folders(self, model_type: str) -> list[layout.StepFolder]:
        """The existing step folders of a model, sorted by snapshot and step."""
        parsed = (layout.parse_step_folder(name) for name in self.folders())
        of_model = (folder for folder in parsed if folder is not None and folder.model_type == model_type)
        return sorted(of_model, key=lambda folder: (folder.snapshot != "xt", folder.step))

    def remove_feature_caches(self, step_folder: str) -> int:
        """Remove retrieval scripts' feature caches of a step's folder; how many there were."""
        folders = [step_folder, *(f"{step_folder}/{name}" for name in self.folders(step_folder))]
        stale_files = []
        for folder, pattern in itertools.product(folders, layout.FEATURE_CACHES):
            stale_files += self.list_names(folder, pattern)
        self.remove_all(stale_files)
        return len(stale_files)

    def remove_all(self, names: Iterable[str]) -> None:
        """Remove files, in any order."""
        self.for_each(self.remove, names)

    def for_each(self, do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """The results of calls that each wait for files of OUTPUT, `parallel_requests` at a time."""
        if self.parallel_requests == 1:
            return list(map(do, items))
        with ThreadPoolExecutor(self.parallel_requests) as pool:
            return list(pool.map(do, items))


class Writer(abc.ABC):
    """What writes files of an OUTPUT for one run. Cheap to pickle: processes that write get their own."""

    def __init__(self, output: Output, run_id: str):
        self.output, self.run_id = output, run_id

    @abc.abstractmethod
    def begin(self) -> None:
        """Check that files can be written, and create what is needed, before a run's first image.

        Raises:
            Refused: they can't.
        """

    @abc.abstractmethod
    def write_with(self, relative: str, write: Callable[[Any], object]) -> None:
        """Write a whole file or nothing, by a function that writes its content to a `Sink`.

        Transient errors (a full disk, an overloaded server) are retried for about 15 s, see `retry`.
        """

    def _try_for_a_while(self, relative: str, attempt: Callable[[], None]) -> None:
        """Run `attempt`, and again after a transient error, as long as the retry policy of this run allows it."""
        retries = _retries[self.run_id]
        while True:
            try:
                attempt()
                retries.restore()
                return
            except OSError as error:
                if not retries.wait(error, self.output.display_path(relative)):
                    raise

    @abc.abstractmethod
    def write(self, relative: str, data: bytes) -> None:
        """Write a whole file or nothing; as `write_with`."""
