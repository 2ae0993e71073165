"""Controls: what a score is worth is seen beside the score of proxies that can't help. Seeded: the same seed, the same.
Knows arrays of vectors; nothing of queries or methods."""

import numpy as np

from ray_app.evaluation.features import lengths

NONE, SHUFFLED, LEFT_OUT, NOISE, OTHER_SEED = "none", "shuffled", "left_out", "noise", "other_seed"
CONTROLS = {
    NONE: "the query's own proxies",
    SHUFFLED: "proxies of another query",
    LEFT_OUT: "no proxy, all else the same",
    NOISE: "Gaussian noise of the same length",
    OTHER_SEED: "the query's proxies from another seed",
}


def derange(count: int, seed: int) -> np.ndarray:
    """A random order in which nothing is in its own place: int64 (count,). One cycle through all of `count` >= 2."""
    order = np.random.default_rng(seed).permutation(count)
    deranged = np.empty(count, np.int64)
    deranged[order] = np.roll(order, -1)
    return deranged


def noise_like(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Vectors in random directions, each as long as the one in its place."""
    noise = np.random.default_rng(seed).standard_normal(vectors.shape, np.float32)
    noise *= (lengths(vectors) / lengths(noise))[:, None]
    return noise
