"""Storage: the files under OUTPUT on a local or shared filesystem, every write atomic.
Knows paths and bytes, nothing of images, rows or runs."""

import collections
import contextlib
import errno
import fcntl
import fnmatch
import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ray_app import layout
from ray_app.errors import Refused
from ray_app.patience import Patience

_patience: collections.defaultdict[str | None, Patience] = collections.defaultdict(Patience)
"""By run. Of the process, not of a Storage: a writer gets a new one with each batch, and can't wait anew for each."""


class Storage:
    """One output folder. Cheap to pickle: writers on other processes get their own.

    Every OSError that leaves it names the path in OUTPUT (`filename`) and says what can't be done and why (`strerror`).

    Args:
        root: OUTPUT, a local path.
        run_id: names the run's staging folder; None for readers.
    """

    def __init__(self, root: str, run_id: str | None = None):
        if "://" in root:
            raise Refused(f"--output_base_path {root}: only local and shared filesystem paths can be written")
        if not root.strip():
            raise Refused(f"--output_base_path {root!r}: not the name of a folder")
        self.root = Path(os.path.expanduser(root)).absolute()
        self.run_id = run_id
        self._began = False
        self._made: set[Path] = set()

    def path(self, relative: str) -> Path:
        """The absolute path of something under OUTPUT."""
        return self.root / relative

    def check_writable(self, create: bool) -> None:
        """Raise Refused unless files can be written here; with `create`, make OUTPUT and try it with a real file.

        From then on OUTPUT is never made again: a run whose output vanishes must not go on beside it.
        """
        try:
            if create:
                self._persist("probe", lambda path: path.write_bytes(b""), staged_only=True)
                self._began = True
                return
            existing = next(parent for parent in (self.root, *self.root.parents) if parent.exists())
            if not existing.is_dir():
                raise NotADirectoryError(f"{existing} is a file")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission in {existing}")
        except OSError as error:
            raise Refused(f"--output_base_path {self.root}: can't be written: {_reason(error)}") from error

    def write(self, relative: str, data: bytes) -> None:
        """Write a whole file or nothing: staged beside the tree, then renamed to its place.

        Survives a killed process. After a power cut a file can be short; its index row tells, since it has the size.
        What can pass (a full disk, a file server's hiccup) is tried again for some 15 s, see `patience`.
        """
        self.write_with(relative, lambda path: path.write_bytes(data))

    def write_with(self, relative: str, write: Callable[[Path], object]) -> None:
        """As `write`, for libraries that write to a path themselves."""
        try:
            self._persist(relative, write)
        except OSError as error:
            raise _named(error, self.path(relative), "written") from error

    def _persist(self, relative: str, write: Callable[[Path], object], staged_only: bool = False) -> None:
        staged = self.staging() / uuid.uuid4().hex
        final = self.path(relative)
        patience = _patience[self.run_id]
        while True:
            try:
                self._write(staged, final, write, staged_only)
                patience.restore()
                return
            except OSError as error:
                if not patience.wait(error, final):
                    raise

    def _write(self, staged: Path, final: Path, write: Callable[[Path], object], staged_only: bool) -> None:
        try:
            try:
                self._place(staged, final, write, staged_only)
            except FileNotFoundError:  # someone removed a folder that this process had made
                self._made.clear()
                self._place(staged, final, write, staged_only)
        finally:
            with contextlib.suppress(OSError):  # half a file would keep the room that the next try needs
                staged.unlink(missing_ok=True)

    def _place(self, staged: Path, final: Path, write: Callable[[Path], object], staged_only: bool) -> None:
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

    def staging_age(self, run_id: str) -> float:
        """Seconds since something changed in a run's staging folder; 0 if it is gone."""
        folder = self.path(f"{layout.STAGING}/{run_id}")
        try:
            newest = max([folder.stat().st_mtime, *(entry.stat().st_mtime for entry in _scan(folder))])
        except FileNotFoundError:
            return 0.0
        return time.time() - newest

    def sizes(self, folder: str) -> dict[str, int]:
        """The files two levels below a step's folder (`combined/NAME`) with their sizes in bytes."""
        found: dict[str, int] = {}
        for subfolder in _scan(self.path(folder)):
            if subfolder.is_dir():
                for entry in _scan(subfolder.path):
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        found[f"{subfolder.name}/{entry.name}"] = entry.stat().st_size
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
            try:
                self.path(name).unlink(missing_ok=True)
            except OSError as error:
                raise _named(error, self.path(name), "removed") from error
        return len(stale)

    def folders(self, folder: str = "") -> list[str]:
        """Sorted names of a folder's folders."""
        return sorted(entry.name for entry in _scan(self.path(folder)) if entry.is_dir())

    def step_folders(self, model_type: str) -> list[layout.StepFolder]:
        """The step folders of a model that are there, sorted by snapshot and step."""
        found = (layout.parse_step_folder(name) for name in self.folders())
        mine = (folder for folder in found if folder is not None and folder.model_type == model_type)
        return sorted(mine, key=lambda folder: (folder.snapshot != "xt", folder.step))

    def files(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every file below a folder, however deep: its path within the folder. What vanishes meanwhile is left out."""
        for entry in _scan(self.path(folder)):
            if entry.is_dir(follow_symlinks=False):
                yield from (
                    (f"{entry.name}/{name}", stat) for name, stat in self.files(posixpath.join(folder, entry.name))
                )
            else:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat()

    def remove(self, relative: str) -> None:
        """Remove a file; nothing if it is gone already."""
        self.path(relative).unlink(missing_ok=True)

    def remove_empty(self, folder: str) -> None:
        """Remove a folder and those below it, as far as they are empty."""
        for name in self.folders(folder):
            if not self.path(f"{folder}/{name}").is_symlink():
                self.remove_empty(f"{folder}/{name}")
        with contextlib.suppress(OSError):  # something is in it, or it is gone
            self.path(folder).rmdir()

    def set_aside(self, relative: str) -> None:
        """Move a file out of the tree, under the path that it had; overwrites nothing. No harm if it is gone."""
        kept = aside = f"{layout.SET_ASIDE}/{relative}"
        number = 0
        while os.path.lexists(self.path(aside)):
            number += 1
            aside = f"{kept}.{number}"
        try:
            self.path(aside).parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.path(relative), self.path(aside))
        except FileNotFoundError:  # another run was faster
            return
        except OSError as error:
            raise _named(error, self.path(relative), "set aside") from error

    def sync(self, relative: str) -> None:
        """Wait until a file, or a folder's list of names, would survive a power cut."""
        descriptor = os.open(self.path(relative), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """Keep other processes that lock the same folder out; a killed one leaves no lock behind.

        Raises:
            Refused: another one is in it.
        """
        descriptor = os.open(self.path(folder), os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"{self.path(folder)}: another compact, clean or verify --repair is rewriting it; wait for its end"
                ) from None
            except OSError:  # filesystems that can't lock a folder (some NFS): then it is the user who takes care
                pass
            yield
        finally:
            os.close(descriptor)

    def _make(self, folder: Path) -> None:
        """Make a folder of OUTPUT; OUTPUT itself, and the run's own folder, only before the run has begun."""
        if folder in self._made:
            return
        if not self._began:
            self.root.mkdir(parents=True, exist_ok=True)
        elif not self.staging().is_dir():
            gone = f"{self.staging()} is gone since the run began: removed, renamed or unmounted"
            raise FileNotFoundError(errno.ENOENT, gone)
        made = self.root
        for name in folder.relative_to(self.root).parts:
            made /= name
            try:
                made.mkdir(exist_ok=True)
            except FileExistsError:
                raise NotADirectoryError(errno.ENOTDIR, f"{made} is a file") from None
        self._made.add(folder)


def _scan(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _named(error, Path(folder), "read") from error


def _named(error: OSError, path: Path, done: str) -> OSError:
    """The same error about the path that a user knows, instead of a staged one or none."""
    return OSError(error.errno or errno.EIO, f"can't be {done}: {_reason(error)}", str(path))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
