"""The verb `export`: an output in the forms that other programs read, each in a module of its own.
Knows which form was asked for, and how a new folder is there whole or not at all."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from ray_app.ask_options import Export
from ray_app.errors import OutputRefused
from ray_app.files import whole_folder
from ray_app.storage import Output, open_output


def export(options: Export) -> int:
    """Write it; the exit code.

    Raises:
        Refused: flags that don't go together, no such images, a folder that can't be written.
    """
    output = open_output(options.output_base_path)
    return _formats()[options.format](output, options)


def _formats() -> dict[str, Callable[[Output, Export], int]]:
    from ray_app import export_imagefolder, export_ipcir, export_trajectories, export_webdataset

    modules = {
        "imagefolder": export_imagefolder,
        "trajectories": export_trajectories,
        "webdataset": export_webdataset,
        "ipcir": export_ipcir,
    }
    return {name: module.export for name, module in modules.items()}


def new_folder(path: str) -> contextlib.AbstractContextManager[Path]:
    """A folder to write to that takes the place of the wanted one at the end.

    Raises:
        Refused: there is something already, or it can't be written.
    """
    if "://" in path:
        raise OutputRefused(
            f"--export_path {path}: must be a folder of this machine, or one mounted on it", flag="export_path"
        )
    return whole_folder(Path(path).expanduser().absolute(), "--export_path")
