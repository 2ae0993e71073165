"""The verb `export`: an output in the forms that other programs read, each in a module of its own.
Knows which form was asked for, and how a new folder is there whole or not at all."""

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ray_app import runs
from ray_app.ask_options import Export
from ray_app.errors import Refused
from ray_app.interrupts import Interrupts
from ray_app.storage import Storage, open_storage


def export(options: Export) -> int:
    """Write it; the exit code.

    Raises:
        Refused: flags that don't go together, no such images, a folder that can't be written.
    """
    options.check()
    storage = open_storage(options.output_base_path, runs.new_id())
    with Interrupts() as interrupts:
        return _formats()[options.format](storage, options, interrupts)


def _formats() -> dict[str, Callable[[Storage, Export, Interrupts], int]]:
    from ray_app import export_imagefolder, export_ipcir, export_trajectories, export_webdataset

    modules = {
        "imagefolder": export_imagefolder,
        "trajectories": export_trajectories,
        "webdataset": export_webdataset,
        "ipcir": export_ipcir,
    }
    return {name: module.export for name, module in modules.items()}


@contextlib.contextmanager
def new_folder(path: str) -> Iterator[Path]:
    """A folder beside the wanted one to write to, which takes its place at the end, or goes.

    Raises:
        Refused: there is something already, or it can't be written.
    """
    if "://" in path:
        raise Refused(f"--export_path {path}: must be a folder of this machine, or one mounted on it")
    wanted = Path(path).expanduser().absolute()
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise Refused(f"--export_path {wanted}: is there already; name a new or empty folder")
    staged = wanted.with_name(f".{wanted.name}.{uuid.uuid4().hex[:8]}")
    try:
        staged.mkdir(parents=True)
        try:
            yield staged
            staged.rename(wanted)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except OSError as error:
        raise Refused(f"--export_path {wanted}: can't be written: {error.strerror or error}") from error
