"""Text alone: the baseline without any proxy.

score(g) = t · g, with t the normalised mean of the unit vectors of the query's prompts and g an image's unit vector.
Source: the plain variant of LDRE, whose prompts are averaged instead of weighted.
"""

import numpy as np

from ray_app.evaluation.inputs import Inputs, unit
from ray_app.evaluation.search import Buffers

WEIGHT = None
WITHOUT_PROXY = None
USES_PROXY = False


def missing(inputs: Inputs) -> str | None:
    return None


def text_vectors(inputs: Inputs) -> np.ndarray | None:
    return unit(inputs.text)


def proxy_vectors(inputs: Inputs) -> np.ndarray | None:
    return None


def combine(by_text: np.ndarray, by_proxy: np.ndarray, weight: float, buffers: Buffers) -> np.ndarray:
    return by_text
