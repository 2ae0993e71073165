"""Text and proxy, added: the simplest way to use a proxy, where the weight says how much of it.

score(g) = (1 - w) · (t · g) + w · (p · g), with t and p as in `text` and `proxy`. w = 0 is text alone, w = 1 the proxy.
"""

import numpy as np

from ray_app.evaluation.inputs import Inputs, unit
from ray_app.evaluation.search import Buffers

WEIGHT = "share of the proxy"
WITHOUT_PROXY = 0.0
USES_PROXY = True


def missing(inputs: Inputs) -> str | None:
    return None


def text_vectors(inputs: Inputs) -> np.ndarray | None:
    return unit(inputs.text)


def proxy_vectors(inputs: Inputs) -> np.ndarray | None:
    return unit(inputs.proxy_term)


def combine(by_text: np.ndarray, by_proxy: np.ndarray, weight: float, buffers: Buffers) -> np.ndarray:
    scores, weighted = buffers
    np.multiply(by_text, np.float32(1 - weight), out=scores)
    np.multiply(by_proxy, np.float32(weight), out=weighted)
    return np.add(scores, weighted, out=scores)
