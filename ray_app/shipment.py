"""What a submitted job gets: the project's sources and the annotations, as one zip under Ray's size limit.
Knows files; nothing of clusters."""

import os
import zipfile
from pathlib import Path

from ray_app.errors import InputRefused, one_line

PACKAGES = ("actors", "ray_app", "jobs")
NOT_SHIPPED = ("jobs/benchmarks/", "jobs/training/")
"""Folders of a clone that no job runs."""
INSTALLED = Path(__file__).resolve().parent.parent
MAX_BYTES = 100 * 2**20
"""Ray's dashboard takes no larger upload."""
NAMED = 3
"""Biggest files that an error names."""
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The time of every file in the zip: Ray knows an upload by its bytes, and the same sources are sent once."""


def sources(working_dir: Path) -> tuple[Path, dict[str, Path]]:
    """Where the project's sources are, and the files by their names in the job's folder.

    A working_dir that is a checkout ships its own, changed as they may be; any other the ones that run here.
    """
    checkout = all((working_dir / package / "__init__.py").is_file() for package in PACKAGES)
    root = working_dir if checkout else INSTALLED
    found = sorted(path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file())
    files = {path.relative_to(root).as_posix(): path for path in found}
    files = {name: path for name, path in files.items() if not _is_left_out(name)}
    if checkout and (root / "pyproject.toml").is_file():
        files["pyproject.toml"] = root / "pyproject.toml"
    return root, files


def _is_left_out(name: str) -> bool:
    hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
    return hidden or name.startswith(NOT_SHIPPED)


def annotations(json_file: str, working_dir: Path) -> tuple[str, Path] | None:
    """The annotations' name in the job's folder and their path here; None if they are the cluster's own.

    Those are what lies in object storage, and an absolute path that is not there on this machine.

    Raises:
        Refused: a relative path where nothing is.
    """
    if "://" in json_file:
        return None
    path = Path(os.path.abspath(working_dir / os.path.expanduser(json_file)))
    if not path.is_file():
        if os.path.isabs(json_file):
            return None
        raise InputRefused(
            f"--json_file {json_file}: no such file in {working_dir} (--working_dir);"
            " name one here, which is shipped, or an absolute path of the cluster"
        )
    inside = path.is_relative_to(working_dir)
    return (path.relative_to(working_dir).as_posix() if inside else path.name), path


def pack(files: dict[str, Path], package: Path) -> int:
    """Write the zip; its size in bytes.

    Raises:
        Refused: it is larger than Ray takes, or a file can't be read.
    """
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in sorted(files.items()):
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            try:
                archive.writestr(entry, path.read_bytes())
            except OSError as error:
                raise InputRefused(f"{path}: can't be shipped: {one_line(error)}") from None
        sizes = sorted(((entry.compress_size, entry.filename) for entry in archive.infolist()), reverse=True)
    size = package.stat().st_size
    if size > MAX_BYTES:
        biggest = ", ".join(f"{name} ({_megabytes(bytes_)})" for bytes_, name in sizes[:NAMED])
        raise InputRefused(
            f"the job's files are {_megabytes(size)} zipped, and Ray takes {_megabytes(MAX_BYTES)}; the biggest are"
            f" {biggest}: put annotations where the cluster reads them, and other files out of the sources' folders"
        )
    return size


def describe(root: Path, files: dict[str, Path], size: int, annotated: str | None) -> str:
    """What is shipped, in a line."""
    more = f", and {annotated}" if annotated else ""
    return f"{len(files):,} files, {_megabytes(size)}: the sources in {root}{more}"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
