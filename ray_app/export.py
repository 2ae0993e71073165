"""The verb `export`: an output in the forms that other programs read, each in a module of its own.
Knows which form was asked for, and how a new folder is there whole or not at all."""

from collections.abc import Callable

from ray_app.export_options import Export
from ray_app.opening import open_output
from ray_app.storage import Output


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
