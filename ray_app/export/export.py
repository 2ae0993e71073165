"""The verb `export`: an output in the forms that other programs read, each in a module of its own.
Knows which form was asked for, and how a new folder is there whole or not at all."""

from collections.abc import Callable

from ray_app.export.options import Export
from ray_app.output.open import open_output
from ray_app.output.output import Output


def export(options: Export) -> int:
    """Write it; the exit code.

    Raises:
        Refused: flags that don't go together, no such images, a folder that can't be written.
    """
    output = open_output(options.output_base_path)
    return _formats()[options.format](output, options)


def _formats() -> dict[str, Callable[[Output, Export], int]]:
    from ray_app.export import imagefolder, ipcir, trajectories, webdataset

    modules = {
        "imagefolder": imagefolder,
        "trajectories": trajectories,
        "webdataset": webdataset,
        "ipcir": ipcir,
    }
    return {name: module.export for name, module in modules.items()}
