"""Packages that few commands need, and that the base installation leaves out: they come with an extra.
Knows their names; imports none of them."""

import importlib.util
from typing import NamedTuple

from ray_app.errors import InputRefused


class Extra(NamedTuple):
    """An optional part of the installation.

    Attributes:
        packages: as pip names them, by the name that is imported.
    """

    name: str
    packages: dict[str, str]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'proxyqueue[{self.name}]'"

    def check(self, command: str, *modules: str) -> None:
        """Raise Refused if a module that the command needs is not installed here, with the command that installs it."""
        missing = [self.packages[module] for module in modules if not is_installed(module)]
        if missing:
            raise InputRefused(f"{command} needs {' and '.join(missing)}: {self.install}")


PLOT = Extra("plot", {"skimage": "scikit-image", "matplotlib": "matplotlib"})


def is_installed(module: str) -> bool:
    """Whether a module can be imported here, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
