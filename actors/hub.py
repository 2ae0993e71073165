"""A model of the hub: the commit that a name means, its files, and their download into this machine's cache.
Knows the hub's client and its cache; imports no torch."""

import contextlib
import dataclasses
import errno
import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from actors import weights
from actors.errors import ModelError
from actors.recipe import Recipe

WAITS = (2, 8, 30)
"""Seconds between retries while a hub is overloaded or the network fails; each is several tries of the client."""
OVERLOADED = (408, 425, 429, 500, 502, 503, 504)
BROKEN_OFF = ("TimeoutException", "NetworkError", "RemoteProtocolError")
"""Classes of the client's HTTP library, whichever it is, for a network that does not answer or fails."""
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LONGEST_WAIT = 300.0
"""The longest wait, in seconds, that a hub may request."""
MAKE_ROOM = "make room, or set HF_HOME to a folder of another disk"
Result = TypeVar("Result")
Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A commit of a model: its folder in the cache, and its files' sizes in bytes by name."""

    commit: str
    folder: Path
    sizes: dict[str, int]


def look_up(repository: str, revision: str | None, tell: Tell, index: str = weights.INDEX) -> Snapshot:
    """The commit that a revision means (None: the default branch), with its configs in the cache.

    If the hub can't be reached, for whatever reason, the cached commit is used.

    Args:
        index: the file that a cached commit must have.

    Raises:
        ModelError: no such model or revision, or it is neither in the cache nor can the hub be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def download() -> Path:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[f"*{end}" for end in weights.CONFIGS])
        )

    try:
        with _retries_told(repository, tell):
            folder = download()
    except (GatedRepoError, RevisionNotFoundError, RepositoryNotFoundError) as error:
        raise ModelError(explain(error, repository, revision)) from None
    except Exception as error:  # the client raises many kinds
        if cached := _cached(repository, revision, index):
            tell(f"{repository}: commit {cached.name[:12]} of the cache is used: {_why(error)}")
            return Snapshot(cached.name, cached, _sizes_in(cached))
        if _status(error) not in OVERLOADED:
            raise ModelError(explain(error, repository)) from None
        folder = patiently(download, repository, tell)
    return Snapshot(folder.name, folder, _listed(repository, folder.name) or _sizes_in(folder))


class Files:
    """The files of a commit that a pipeline reads, in this machine's cache or being downloaded to it.

    Args:
        names_of: picks them from the names of all files.
        index: the file that a commit must have.

    Raises:
        ModelError: it is not known which files there are: the cache has none, and the hub can't be reached.
    """

    def __init__(
        self,
        repository: str,
        commit: str,
        names_of: Callable[[Collection[str]], list[str]],
        tell: Tell,
        index: str = weights.INDEX,
    ):
        self.repository, self.commit, self.tell = repository, commit, tell
        self.sizes = _listed(repository, commit) or look_up(repository, commit, tell, index).sizes
        self.names = [name for name in names_of(self.sizes) if name in self.sizes]
        self.folder = _repository_folder(repository) / "snapshots" / commit

    def missing(self) -> int:
        """Bytes that are not in the cache."""
        return sum(self.sizes[name] for name in self.names if not (self.folder / name).is_file())

    def fetch(self) -> Path:
        """The folder with all of them; the client keeps several processes from downloading the same file at once.

        Raises:
            ModelError: the hub does not provide them, or the disk has no room for them.
        """
        from huggingface_hub import constants, snapshot_download

        if not (needed := self.missing()):
            return self.folder
        if needed > _free():
            raise ModelError(
                f"{constants.HF_HUB_CACHE}: {size(needed)} are needed for {self.repository} and {size(_free())} are"
                f" free; {MAKE_ROOM}"
            )
        names = [escape(name) for name in self.names]
        patiently(
            lambda: snapshot_download(self.repository, revision=self.commit, allow_patterns=names),
            self.repository,
            self.tell,
        )
        return self.folder

    def arrived(self) -> int:
        """Bytes of all files of the model in the cache, including partial downloads."""
        total = 0
        for file in (_repository_folder(self.repository) / "blobs").glob("*"):
            with contextlib.suppress(OSError):  # renamed meanwhile
                total += file.stat().st_size
        return total


def files_of(recipe: Recipe, tell: Tell) -> Files:
    """The files of a hub's model that are read for a recipe; see `Files`."""

    def names_of(names: Collection[str]) -> list[str]:
        return weights.read_by(names, recipe.model_type, recipe.variant)

    return Files(recipe.model_path, recipe.hub_revision or "", names_of, tell)


def files_of_vae(recipe: Recipe, tell: Tell) -> Files:
    """The files of the hub's VAE that a recipe takes instead of its model's own; see `Files`."""
    return Files(
        recipe.vae_path or "", recipe.vae_hub_revision or "", weights.read_of_vae, tell, index=weights.VAE_CONFIG
    )


def patiently(download: Callable[[], Result], repository: str, tell: Tell) -> Result:
    """Retry, with growing pauses, while the hub is overloaded or the network fails.

    Raises:
        ModelError: the error persists, or is not transient.
    """
    for wait in (*WAITS, None):
        try:
            with _retries_told(repository, tell):
                return download()
        except Exception as error:
            if wait is None or not _passes(error):
                raise ModelError(explain(error, repository)) from None
            seconds = _requested_wait(error) or wait
            tell(f"{repository}: {_why(error)}; retrying in {seconds:g} s")
            time.sleep(seconds)
    raise AssertionError("the last try returns or raises")


def explain(error: BaseException, repository: str, revision: str | None = None) -> str:
    """What an error of the client means for this model, on one line, with what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{repository}: a gated model; accept its terms on the hub and set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{repository}: the hub has no revision {revision!r} of it"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repository}: neither a folder nor a model on the hub (private ones need HF_TOKEN)"
    cause = _chain(error)[-1]
    if isinstance(cause, OSError) and cause.errno in OF_THE_DISK:
        place = cause.filename or constants.HF_HUB_CACHE
        return f"{place}: {cause.strerror} ({size(_free())} are free); make room, or set HF_HOME to another folder"
    if _status(error):
        return f"{repository}: {_why(error)}"
    advice = "use a local folder instead, or tiny, which comes with the package"
    return f"{repository}: not in the local cache, and {_why(error)}; {advice}"


def size(count: float) -> str:
    """Bytes in GB or MB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


@contextlib.contextmanager
def _retries_told(repository: str, tell: Tell) -> Iterator[None]:
    """Inside, the client shows no progress bars, and the first line that it logs about a retry is passed on."""
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import get_logger

    disable_progress_bars()
    logger, first = get_logger(), _First(lambda line: tell(f"{repository}: {line}; the client retries"))
    other_handlers = logger.handlers[:]
    logger.handlers[:] = [first]
    try:
        yield
    finally:
        logger.handlers[:] = other_handlers


class _First(logging.Handler):
    """Passes on the first warning of a request that went wrong."""

    def __init__(self, tell: Tell):
        super().__init__(logging.WARNING)
        self._tell: Tell | None = tell

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if self._tell and "thrown while requesting" in line:
            tell, self._tell = self._tell, None
            tell(" ".join(line.split()))


def _why(error: BaseException) -> str:
    """What the hub answers instead of a file."""
    if status := _status(error):
        return f"the hub answers {status}{_file(error)}"
    return f"the hub can't be reached ({' '.join(str(_chain(error)[-1]).split())[:160] or type(error).__name__})"


def _cached(repository: str, revision: str | None, index: str) -> Path | None:
    """The folder of a revision in the cache, if the model's index is in it."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[]))
    except Exception:
        return None
    return folder if (folder / index).is_file() else None


def _listed(repository: str, commit: str) -> dict[str, int] | None:
    """Names and sizes of a commit's files as the hub once listed them; None if it never did."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {file.path: file.size for file in get_cached_repo_tree(repository, revision=commit)}
    except CachedRepoTreeNotFoundError:
        return None


def _sizes_in(folder: Path) -> dict[str, int]:
    """The sizes of a folder's files, by name."""
    return {name: (folder / name).stat().st_size for name in weights.names_in(folder)}


def _repository_folder(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _free() -> int:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _response(error: BaseException) -> Any:
    """The hub's response that caused an error, None if there was no response."""
    responses = (getattr(cause, "response", None) for cause in _chain(error))
    return next((response for response in responses if response is not None), None)


def _status(error: BaseException) -> int | None:
    response = _response(error)
    return None if response is None else response.status_code


def _file(error: BaseException) -> str:
    """The requested file, as " for NAME"."""
    _, _, path = str(_response(error).url).partition("/resolve/")
    name = path.partition("/")[2].partition("?")[0]
    return f" for {name}" if name else ""


def _requested_wait(error: BaseException) -> float | None:
    """Seconds that the hub requests to wait."""
    response = _response(error)
    seconds = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(seconds), LONGEST_WAIT) if seconds.isdecimal() else None


def _passes(error: BaseException) -> bool:
    """Whether the error is transient."""
    status = _status(error)
    if status is not None:
        return status in OVERLOADED
    class_names = set()
    for cause in _chain(error):
        class_names |= {kind.__name__ for kind in type(cause).__mro__}
    return not class_names.isdisjoint(BROKEN_OFF)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the first cause last."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    return causes
