"""Intervals of means over queries, by resampling the queries; all columns share the draws, so differences are paired.
Knows arrays of scores; nothing of what they mean.

Percentile bootstrap (Efron 1979). Holm (1979) holds the chance of any false finding among several steps at the level.
"""

import functools

import numpy as np

LEVEL = 95
"""Per cent of the draws within an interval."""
COLUMNS_A_TIME = 256


def intervals(scores: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low and high end of each column's mean, and the two-sided p-value of a mean of 0.

    Args:
        scores: float64 (queries, columns).
        draws: samples of as many queries, with replacement; the same for the same number of queries and seed.

    Returns:
        float64 (columns,) each. p = 2 · min(share of draws ≤ 0, share ≥ 0), with the data itself as one more draw.
    """
    counts = _draw_counts(len(scores), draws, seed)
    tail = (100 - LEVEL) / 2
    low, high, p = (np.empty(scores.shape[1]) for _ in range(3))
    for first in range(0, scores.shape[1], COLUMNS_A_TIME):
        columns = slice(first, first + COLUMNS_A_TIME)
        means = counts @ scores[:, columns] / len(scores)
        low[columns], high[columns] = np.percentile(means, [tail, 100 - tail], axis=0)
        below, above = (means <= 0).sum(axis=0), (means >= 0).sum(axis=0)
        p[columns] = np.minimum(1, 2 * (np.minimum(below, above) + 1) / (draws + 1))
    return low, high, p


@functools.lru_cache(maxsize=2)
def _draw_counts(queries: int, draws: int, seed: int) -> np.ndarray:
    """How often each query is in each sample: float64 (draws, queries)."""
    chance = np.random.default_rng(seed)
    return chance.multinomial(queries, np.full(queries, 1 / queries), size=draws).astype(np.float64)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for their number: compare each with the level as if it were the only one."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(1, adjusted)
    return result
