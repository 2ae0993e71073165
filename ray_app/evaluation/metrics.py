"""How good a ranking is, per query. Knows positions in a gallery; nothing of methods or files.

Definitions are CIRCO's: AP@k = Σ over ranks i ≤ k of precision@i · hit_i / min(k, number of right images), and Recall@k
is whether the one target is among the first k. All scores are in per cent.
"""

import numpy as np

CUTOFFS = (5, 10, 25, 50)


def find_hits(best: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Which ranks hold a right image: bool (queries, ranks).

    Args:
        best: positions, best first: (queries, ranks).
        relevant: positions of the right images, filled up with -1: (queries, most).
    """
    hits = np.zeros(best.shape, bool)
    for column in relevant.T:
        hits |= best == column[:, None]
    return hits


def average_precision(hits: np.ndarray, relevant_count: np.ndarray, k: int) -> np.ndarray:
    """AP@k of each query: float64 (queries,)."""
    hits = hits[:, :k]
    ranks = np.arange(1, hits.shape[1] + 1)
    precision = np.cumsum(hits, axis=1) / ranks
    return 100 * (precision * hits).sum(axis=1) / np.minimum(k, relevant_count)


def recall(best: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """100 where the target is among the first k, else 0: float64 (queries,)."""
    return 100.0 * (best[:, :k] == target[:, None]).any(axis=1)


def overlap(best: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How much of one ranking is in the other, in any order: float64 (queries,)."""
    common = np.zeros(len(best))
    for column in other.T:
        common += (best == column[:, None]).any(axis=1)
    return 100 * common / best.shape[1]


def cosine(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """100 times the cosine of each pair of rows: float64 (queries,)."""
    a, b = vectors.astype(np.float64), others.astype(np.float64)
    return 100 * (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
