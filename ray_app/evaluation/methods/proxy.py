"""The proxy alone: how far its image gets without the text.

score(g) = p · g, with p the normalised mean of the unit vectors of the query's images at the step and g an image's
unit vector.
"""

import numpy as np

from ray_app.evaluation.inputs import Inputs, unit
from ray_app.evaluation.search import Buffers

WEIGHT = None
WITHOUT_PROXY = None
USES_PROXY = True


def missing(inputs: Inputs) -> str | None:
    return None


def text_vectors(inputs: Inputs) -> np.ndarray | None:
    return None


def proxy_vectors(inputs: Inputs) -> np.ndarray | None:
    return unit(inputs.proxy_term)


def combine(by_text: np.ndarray, by_proxy: np.ndarray, weight: float, buffers: Buffers) -> np.ndarray:
    return by_proxy
