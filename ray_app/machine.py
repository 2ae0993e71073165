"""What this machine is: versions of what runs here, and its GPUs as nvidia-smi lists them.
Knows the standard library only: `node_probe` runs these functions on nodes without the project."""

import ast
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pillow", "numpy", "pyarrow")
PIXEL_PACKAGES = ("torch", "diffusers", "transformers", "pillow")
"""Those of which another version may change an image's bytes: pillow encodes what the others compute."""
MISSING = "none"
"""Stands for the version of a package that is not installed."""
NVIDIA_SMI_SECONDS = 30.0


def versions() -> dict[str, str]:
    """Versions of what decides pixels and behaviour; MISSING for a package that is not installed."""
    project = sys.modules.get("ray_app")  # what runs here, whether it is installed or only shipped with a job
    versions_found = {"proxyqueue": getattr(project, "__version__", MISSING), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions_found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions_found[package] = MISSING
    return versions_found


def cuda_version() -> str:
    """The CUDA that the installed torch was built for; MISSING for a build without it. Does not import torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return MISSING
    for statement in ast.parse(Path(spec.origin).with_name("version.py").read_text()).body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id="cuda"), value=ast.Constant(value=str(version))):
                return version
    return MISSING


def pixel_versions() -> dict[str, str]:
    """Versions of `PIXEL_PACKAGES`."""
    found = versions()
    return {package: found[package] for package in PIXEL_PACKAGES}


def query_gpus(*fields: str) -> list[list[str]]:
    """The fields of each GPU as nvidia-smi prints them; nothing where the program is missing or fails.

    torch could tell the same, but takes seconds and memory, and sees no GPU in a Ray task that reserves none.

    Args:
        fields: of `nvidia-smi --help-query-gpu`; only the first one may have commas in its value.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    gpus = []
    for line in printed.splitlines():
        values = [value.strip() for value in line.rsplit(",", len(fields) - 1)]
        if len(values) == len(fields) and values[0]:
            gpus.append(values)
    return gpus
