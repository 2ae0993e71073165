"""The command `export`: writes an output in a format that other tools read; each format is a module.
Knows which format is requested, but no format itself."""

import importlib
from typing import cast

from ray_app.errors import InputRefused
from ray_app.export import FORMATS, Format
from ray_app.export.options import Export
from ray_app.output.open import open_output


def export(options: Export) -> int:
    """Write the requested format; the exit code.

    Raises:
        Refused: flags that don't go together, no such images, a folder that can't be written.
    """
    requested = cast(Format, importlib.import_module(FORMATS[options.format]))
    needs_folder = requested.WRITES_FOLDER or options.by_query
    if needs_folder and options.export_path is None:
        raise InputRefused(f"--export_path: name the folder that --format {options.format} writes", flag="export_path")
    if not needs_folder and options.export_path is not None:
        raise InputRefused(f"--export_path: --format {options.format} takes none", flag="export_path")
    return requested.export(open_output(options.output_base_path), options)
