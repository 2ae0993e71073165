"""Packages that a single command needs, and that the base installation leaves out: they come with an extra.
Knows which command needs which; imports none of them."""

import importlib.util
from typing import NamedTuple

from ray_app.errors import InputRefused


class Extra(NamedTuple):
    """An optional part of the installation.

    Attributes:
        command: what needs it.
        packages: as pip names them, by the name that is imported.
    """

    name: str
    command: str
    packages: dict[str, str]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'proxyqueue[{self.name}]'"

    def check(self) -> None:
        """Raise Refused where one of its packages is not installed here, with the command that installs it."""
        missing = [package for module, package in self.packages.items() if not _is_installed(module)]
        if missing:
            raise InputRefused(f"{self.command} needs {' and '.join(missing)}: {self.install}")


PLOT = Extra("plot", "convergence", {"skimage": "scikit-image", "matplotlib": "matplotlib"})


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
