"""Exports an output to formats that other tools read, one module per format.
Knows nothing of how the images were generated."""

from typing import Any, Protocol


class Format(Protocol):
    """What the module of a format provides."""

    WRITES_FOLDER: bool
    """Whether it always writes a new folder, which --export_path names."""

    def export(self, output: Any, options: Any) -> int:
        """Write it; the exit code.

        Args:
            output: an `Output`.
            options: the flags, an `Export`.

        Raises:
            Refused: the output has no such images, or a place can't be written.
        """
        ...


FORMATS = {
    "imagefolder": "ray_app.export.imagefolder",
    "trajectories": "ray_app.export.trajectories",
    "webdataset": "ray_app.export.webdataset",
    "ipcir": "ray_app.export.ipcir",
    "npz": "ray_app.export.npz",
}
"""The modules of the formats by their `--format` names; imported when one is used."""
