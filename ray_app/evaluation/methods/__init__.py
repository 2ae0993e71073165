"""Retrieval methods: each module turns a query's vectors into the score of every gallery image.
Knows vectors and similarities; nothing of files, steps or metrics.

A module is a `Method`: it names the vectors whose similarities to the gallery it needs, at most two matrix products per
step, and combines blocks of these similarities for each weight.
"""

from types import ModuleType
from typing import Any, Protocol

import numpy as np

from ray_app.evaluation.inputs import Inputs
from ray_app.evaluation.methods import ipcir, proxy, text, text_proxy
from ray_app.evaluation.search import Buffers


class Method(Protocol):
    """What a module of this package has."""

    WEIGHT: str | None
    """What the weight that is swept multiplies; None for a method without one."""
    WITHOUT_PROXY: float | None
    """The weight at which the proxy has no share, so that steps can't differ; None for a method without one."""
    USES_PROXY: bool
    """Whether its scores depend on the step."""

    @staticmethod
    def missing(inputs: Inputs) -> str | None:
        """Which of its inputs is not there, for a message; None if it can be computed."""
        ...

    @staticmethod
    def text_vectors(inputs: Inputs) -> np.ndarray | None:
        """Vectors of the first similarities, float32 (queries, D)."""
        ...

    @staticmethod
    def proxy_vectors(inputs: Inputs) -> np.ndarray | None:
        """Vectors of the second similarities, float32 (queries, D)."""
        ...

    @staticmethod
    def combine(by_text: Any, by_proxy: Any, weight: float, buffers: Buffers) -> np.ndarray:
        """The scores of a block of the gallery, float32 (queries, images); one of the arrays that it was given.

        Args:
            by_text, by_proxy: similarities of those vectors to the block, None where it has no such vectors.
            buffers: two arrays of the same shape to compute in; new ones would take most of the time.
        """
        ...


METHODS: dict[str, ModuleType] = {
    "text": text,
    "proxy": proxy,
    "text+proxy": text_proxy,
    "ipcir": ipcir,
}
"""Every method by its name in flags and tables."""
