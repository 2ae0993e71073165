"""IP-CIR: text, reference photo, the text's change and proxy together.

score(g) = λ · S + (1 - λ) · R · S with
S = t · g,   R = r · g,   r = s · max(P)/max(S₀) + d · max(P)/max(D) + p,
where g is an image's unit vector, t the mean of the unit vectors of the query's prompts, s the unit vector of the
reference photo, d the mean over prompts of (prompt's unit vector - unit vector of the caption of the reference photo),
p the mean of the unit vectors of the query's images at the step, and max(P), max(S₀), max(D) the largest value in the
matrices of all queries' p, s and d. Neither t, r nor p is normalised. λ is swept; its authors take 0.65 for ViT-L/14
and 0.3 for ViT-g-14, and 1 for the three weights inside of r.

Source: IP-CIR (CVPR 2025), src/retrieval_circo.py. Two things differ. There t weighs the prompts (LDRE's debiasing),
here it is their mean, that script's plain variant. There p is of a query's first three images, here of all;
--num_prompts 3 takes three. The controls replace p in r; max(P) stays that of the real proxies.
"""

import numpy as np

from ray_app.evaluation.inputs import Inputs
from ray_app.evaluation.search import Buffers

WEIGHT = "λ, share of the text alone"
WITHOUT_PROXY = 1.0
USES_PROXY = True


def missing(inputs: Inputs) -> str | None:
    if inputs.reference is None:
        return "vectors of all reference photos"
    if inputs.direction is None:
        return "vectors of captions of all reference photos (--caption_field)"
    return None


def text_vectors(inputs: Inputs) -> np.ndarray | None:
    return inputs.text


def proxy_vectors(inputs: Inputs) -> np.ndarray | None:
    assert inputs.reference is not None
    assert inputs.direction is not None
    largest = inputs.proxy.max()
    scaled_reference = inputs.reference * (largest / inputs.reference.max())
    scaled_direction = inputs.direction * (largest / inputs.direction.max())
    return scaled_reference + scaled_direction + inputs.proxy_term


def combine(by_text: np.ndarray, by_proxy: np.ndarray, weight: float, buffers: Buffers) -> np.ndarray:
    scores = np.multiply(by_proxy, np.float32(1 - weight), out=buffers[0])
    scores += np.float32(weight)
    return np.multiply(scores, by_text, out=scores)
