"""OUTPUT on a local or shared filesystem: every file is staged outside the tree, then renamed into it.
Knows folders, links and locks; `retry` says which errors are transient."""

import contextlib
import errno
import fcntl
import os
import posixpath
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray_app.errors import OutputRefused
from ray_app.interrupts import uninterrupted
from ray_app.output import layout
from ray_app.output.output import Entry, Output, Writer


class LocalOutput(Output):
    """An OUTPUT that is a folder."""

    def __init__(self, root: str):
        from pyarrow.fs import LocalFileSystem

        self.root = Path(os.path.expanduser(root)).absolute()
        super().__init__(str(self.root), LocalFileSystem())

    def display_path(self, relative: str) -> str:
        return self.path(relative)

    def path(self, relative: str) -> str:
        return str(self.root / relative)

    def exists(self) -> bool:
        return self.root.is_dir()

    def check_writable(self) -> None:
        try:
            existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
            if not existing.is_dir():
                raise NotADirectoryError(f"{existing} is a file")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission in {existing}")
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> OutputRefused:
        return OutputRefused(
            f"--output_base_path {self.root}: can't be written: {_reason(error)}", flag="output_base_path"
        )

    def writer(self, run_id: str) -> "LocalWriter":
        return LocalWriter(self, run_id)

    def staging(self, run_id: str) -> Path:
        """A run's own folder for unfinished files, on the same filesystem as the tree."""
        return self.root / layout.STAGING / run_id

    def remove_staging(self, run_id: str) -> None:
        with uninterrupted(), contextlib.suppress(OSError):  # another run's is in it, or it does not exist
            shutil.rmtree(self.staging(run_id), ignore_errors=True)
            self.staging(run_id).parent.rmdir()

    def staging_age(self, run_id: str) -> float:
        folder = self.staging(run_id)
        try:
            times = [folder.stat().st_mtime, *(entry.stat().st_mtime for entry in _scan(folder))]
        except FileNotFoundError:
            return 0.0
        return self.now() - max(times)

    def now(self) -> float:
        """The filesystem's clock, read from a temporary file, where one can be created; else this host's clock."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()

    def entries(self, folder: str) -> Iterator[Entry]:
        """Leaves out what vanishes meanwhile."""
        for scanned in _scan(self.root / folder):
            if entry := _entry(scanned):
                yield entry

    def files(self, folder: str) -> Iterator[Entry]:
        """Follows links to folders, as `entries` does, except to a folder above. Leaves out what vanishes meanwhile."""
        return self._files(folder, (self.root / folder).resolve().parents)

    def _files(self, folder: str, above: Sequence[Path]) -> Iterator[Entry]:
        real = (self.root / folder).resolve()
        if real in above:
            return
        for scanned in _scan(self.root / folder):
            if scanned.is_dir():
                for entry in self._files(posixpath.join(folder, scanned.name), (*above, real)):
                    yield entry._replace(name=f"{scanned.name}/{entry.name}")
            elif entry := _entry(scanned):
                yield entry

    def remove(self, relative: str) -> None:
        try:
            (self.root / relative).unlink(missing_ok=True)
        except OSError as error:
            raise _named(error, self.root / relative, "removed") from error

    def remove_empty(self, folder: str) -> None:
        for name in self.folders(folder):
            if not (self.root / folder / name).is_symlink():
                self.remove_empty(f"{folder}/{name}")
        with contextlib.suppress(OSError):  # it is not empty, or does not exist
            (self.root / folder).rmdir()

    def quarantine(self, relative: str) -> None:
        kept = target = f"{layout.QUARANTINE}/{relative}"
        number = 0
        while os.path.lexists(self.path(target)):
            number += 1
            target = f"{kept}.{number}"
        try:
            (self.root / target).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path(relative), self.path(target))
        except FileNotFoundError:  # another run was faster
            return
        except OSError as error:
            raise _named(error, self.root / relative, "quarantined") from error

    def sync(self, relative: str) -> None:
        path = self.root / relative
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            # some filesystems (CIFS, FUSE) can't sync folders: they keep names by themselves
            if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
                raise _named(error, path, "written") from error

    @contextlib.contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """A killed process leaves no lock behind."""
        descriptor = os.open(self.path(folder), os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputRefused(
                    f"{self.path(folder)}: another compact, clean or verify --repair is rewriting it; wait for its end"
                ) from None
            except OSError:  # some filesystems (NFS) can't lock a folder: the user has to run one command at a time
                pass
            yield
        finally:
            os.close(descriptor)


class LocalWriter(Writer):
    """Stages each file in the run's own folder, then renames it into the tree.

    After `begin`, OUTPUT and that folder are never created again: a run ends if its OUTPUT vanishes.
    """

    output: LocalOutput

    def __init__(self, output: LocalOutput, run_id: str):
        super().__init__(output, run_id)
        self._began = False

    def begin(self) -> None:
        try:
            self._try_for_a_while("probe", self._probe)
        except OSError as error:
            raise self.output._refused(error) from error
        self._began = True

    def _probe(self) -> None:
        staged = self._staged_file()
        self._stage(staged, lambda path: path.write_bytes(b""))
        staged.unlink()

    def write(self, relative: str, data: bytes) -> None:
        """Survives a killed process. After a power cut a file may be too short, which the size in its row reveals."""
        self.write_with(relative, lambda path: path.write_bytes(data))

    def write_with(self, relative: str, write: Callable[[Any], object]) -> None:
        try:
            self._try_for_a_while(relative, lambda: self._stage_and_rename(self.output.root / relative, write))
        except OSError as error:
            raise _named(error, self.output.root / relative, "written") from error

    def _stage_and_rename(self, final: Path, write: Callable[[Path], object]) -> None:
        staged = self._staged_file()
        try:
            self._stage(staged, write)
            try:
                os.replace(staged, final)
            except (FileNotFoundError, NotADirectoryError):
                self._make(final.parent)
                os.replace(staged, final)
        finally:
            with contextlib.suppress(OSError):  # half a file would take the space that the next try needs
                staged.unlink(missing_ok=True)

    def _staged_file(self) -> Path:
        return self.output.staging(self.run_id) / uuid.uuid4().hex

    def _stage(self, staged: Path, write: Callable[[Path], object]) -> None:
        try:
            write(staged)
        except (FileNotFoundError, NotADirectoryError):
            self._make(staged.parent)
            write(staged)

    def _make(self, folder: Path) -> None:
        """Make a folder of OUTPUT; OUTPUT itself, and the run's own folder, only before the run has begun."""
        staging = self.output.staging(self.run_id)
        if not self._began:
            self.output.root.mkdir(parents=True, exist_ok=True)
        elif not staging.is_dir():
            reason = f"{staging} no longer exists: it was removed, renamed or unmounted during the run"
            raise FileNotFoundError(errno.ENOENT, reason)
        made = self.output.root
        for name in folder.relative_to(self.output.root).parts:
            made /= name
            try:
                made.mkdir(exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, f"{made} is a file") from None


def _entry(scanned: os.DirEntry[str]) -> Entry | None:
    """None if it no longer exists."""
    try:
        stat = scanned.stat()
    except FileNotFoundError:
        return None
    return Entry(scanned.name, scanned.is_dir(), scanned.is_file(), stat.st_size, stat.st_mtime_ns)


def _scan(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _named(error, Path(folder), "read") from error


def _named(error: OSError, path: Path, action: str) -> OSError:
    """The same error, naming the path that a user knows instead of a staged one or none."""
    return OSError(error.errno or errno.EIO, f"can't be {action}: {_reason(error)}", str(path))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
