"""What a submitted job gets: the project's packages and the annotations. Ray packs them, and uploads what is missing.
Knows files; nothing of clusters."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_app.errors import InputRefused

PACKAGES = ("actors", "ray_app", "jobs")
INSTALLED = Path(__file__).resolve().parents[2]
NOT_SHIPPED = ("__pycache__", ".?*", "benchmarks", "training")
"""Patterns of a .gitignore; the last two are folders of a clone that no job runs. `.*` would match a package's own
folder too, and nothing would be shipped."""


def find_packages(working_dir: Path) -> list[Path]:
    """The folders of the project's packages.

    A working_dir that is a checkout ships its own, including local changes; any other ships the running ones.
    """
    is_checkout = all((working_dir / package / "__init__.py").is_file() for package in PACKAGES)
    root = working_dir if is_checkout else INSTALLED
    return [root / package for package in PACKAGES]


def find_annotations(json_file: str, working_dir: Path) -> Path | None:
    """The annotations on this machine; None if they are the cluster's own.

    Those are what lies in object storage, and an absolute path that does not exist on this machine.

    Raises:
        Refused: a relative path where nothing is.
    """
    if "://" in json_file:
        return None
    path = Path(os.path.abspath(working_dir / os.path.expanduser(json_file)))
    if path.is_file():
        return path
    if os.path.isabs(json_file):
        return None
    raise InputRefused(
        f"--json_file {json_file}: no such file in {working_dir} (--working_dir);"
        " name one here, which is shipped, or an absolute path of the cluster"
    )


def name_in_job(annotations: Path) -> str:
    """The annotations' name in the job's folder, whatever folder they are in here; hidden files are not shipped."""
    return annotations.name.lstrip(".")


def runtime_env(packages: Sequence[Path], job_folder: Path) -> dict[str, Any]:
    """What Ray is to ship: packages that the job and its workers import, and the folder that the job runs in.

    Ray identifies an upload by its content: what a cluster has is not sent again.
    """
    return {
        "working_dir": str(job_folder),
        "py_modules": [str(package) for package in packages],
        "excludes": list(NOT_SHIPPED),
    }
