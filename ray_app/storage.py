"""Storage: the files under OUTPUT on a local or shared filesystem, every write atomic.
Knows paths and bytes, nothing of images, rows or runs."""

import contextlib
import fnmatch
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ray_app import layout
from ray_app.errors import Refused


class Storage:
    """One output folder. Cheap to pickle: writers on other processes get their own.

    Args:
        root: OUTPUT, a local path.
        run_id: names the run's staging folder; None for readers.
    """

    def __init__(self, root: str, run_id: str | None = None):
        if "://" in root:
            raise Refused(f"--output_base_path {root}: only local and shared filesystem paths can be written")
        self.root = Path(root).expanduser().absolute()
        self.run_id = run_id
        self._made: set[Path] = set()

    def path(self, relative: str) -> Path:
        """The absolute path of something under OUTPUT."""
        return self.root / relative

    def check_writable(self, create: bool) -> None:
        """Raise Refused unless files can be written here; with `create`, make OUTPUT and try it with a real file."""
        try:
            if create:
                self.write("probe", b"", staged_only=True)
            else:
                existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
                if not existing.is_dir():
                    raise NotADirectoryError(f"{existing} is a file")
                if not os.access(existing, os.W_OK | os.X_OK):
                    raise PermissionError(f"no permission in {existing}")
        except (OSError, ValueError) as error:
            raise Refused(f"--output_base_path {self.root}: can't be written: {_reason(error)}") from error

    def write(self, relative: str, data: bytes, staged_only: bool = False) -> None:
        """Write a whole file or nothing: staged beside the tree, then renamed to its place.

        Survives a killed process. After a power cut a file can be short; its index row tells, since it has the size.
        """
        self.write_with(relative, lambda path: path.write_bytes(data), staged_only)

    def write_with(self, relative: str, write: Callable[[Path], object], staged_only: bool = False) -> None:
        """As `write`, for libraries that write to a path themselves."""
        staged = self.staging() / uuid.uuid4().hex
        final = self.path(relative)
        try:
            try:
                self._write(staged, final, write, staged_only)
            except FileNotFoundError:  # someone removed a folder that this process had made
                self._made.clear()
                self._write(staged, final, write, staged_only)
        finally:
            staged.unlink(missing_ok=True)

    def _write(self, staged: Path, final: Path, write: Callable[[Path], object], staged_only: bool) -> None:
        self._make(staged.parent)
        write(staged)
        if not staged_only:
            self._make(final.parent)
            os.replace(staged, final)

    def staging(self) -> Path:
        """The run's own folder for unfinished files, on the same filesystem as the tree."""
        if self.run_id is None:
            raise ValueError("a reader has no staging folder")
        return self.root / layout.STAGING / self.run_id

    def remove_staging(self) -> None:
        """Remove the run's staging folder, and the common one if no other run uses it."""
        shutil.rmtree(self.staging(), ignore_errors=True)
        with contextlib.suppress(OSError):  # another run's is in it, or it is gone
            self.staging().parent.rmdir()

    def staging_folders(self) -> list[str]:
        """The ids of the runs that have unfinished files here."""
        return sorted(entry.name for entry in _scan(self.path(layout.STAGING)) if entry.is_dir())

    def sizes(self, folder: str) -> dict[str, int]:
        """The files two levels below a step's folder (`combined/NAME`) with their sizes in bytes."""
        found: dict[str, int] = {}
        for subfolder in _scan(self.path(folder)):
            if subfolder.is_dir():
                found |= {f"{subfolder.name}/{entry.name}": entry.stat().st_size for entry in _scan(subfolder.path)}
        return found

    def list_names(self, folder: str, pattern: str) -> list[str]:
        """Sorted relative paths of a folder's files that match; empty if there is no such folder."""
        names = sorted(entry.name for entry in _scan(self.path(folder)) if entry.is_file())
        return [f"{folder}/{name}" for name in fnmatch.filter(names, pattern)]

    def remove_feature_caches(self, step_folder: str) -> int:
        """Remove retrieval scripts' feature caches of a step's folder; how many there were."""
        folders = [step_folder, *(f"{step_folder}/{e.name}" for e in _scan(self.path(step_folder)) if e.is_dir())]
        stale = [name for folder in folders for kind in layout.FEATURE_CACHES for name in self.list_names(folder, kind)]
        for name in stale:
            self.path(name).unlink(missing_ok=True)
        return len(stale)

    def _make(self, folder: Path) -> None:
        if folder not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            self._made.add(folder)


def _scan(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
