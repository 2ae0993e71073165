"""Intervals against scipy's bootstrap, Holm by hand, and controls that are what they say."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ray_app.evaluation import bootstrap, controls

SCORES = np.random.default_rng(0).exponential(20, (80, 3))


def test_intervals_are_those_of_scipy():
    """Both draw at random: their ends differ by a few per cent of the interval's width."""
    low, high, _ = bootstrap.intervals(SCORES, 10_000, 0)
    for column in range(3):
        theirs = scipy.stats.bootstrap((SCORES[:, column],), np.mean, n_resamples=10_000, method="percentile", rng=1)
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert low[column] == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
        assert high[column] == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_draws_are_shared_by_columns_and_repeatable():
    """Equal columns have equal intervals, a constant difference has none, and another seed is another sample."""
    values = np.stack([SCORES[:, 0], SCORES[:, 0], SCORES[:, 0] - SCORES[:, 0] + 2], axis=1)
    low, high, _ = bootstrap.intervals(values, 1000, 5)
    assert low[0] == low[1]
    assert (low[2], high[2]) == (2, 2)
    assert bootstrap.intervals(values, 1000, 5)[0].tolist() == low.tolist()
    assert bootstrap.intervals(values, 1000, 6)[0][0] != low[0]


def test_p_values_by_hand():
    """Of 1,000 draws none is at or below 0: p = 2 · (0 + 1) / 1001. Of zeros all are both: p = 1."""
    values = np.stack([np.full(10, 3.0), np.zeros(10)], axis=1)
    assert bootstrap.intervals(values, 1000, 0)[2] == pytest.approx([2 / 1001, 1])


def test_holm_by_hand():
    """0.01 · 4 = 0.04, 0.02 · 3 = 0.06, 0.03 · 2 = 0.06, 0.6 · 1; each at least what came before it."""
    adjusted = bootstrap.holm(np.array([0.6, 0.02, 0.01, 0.03]))
    assert adjusted == pytest.approx([0.6, 0.06, 0.04, 0.06])
    assert bootstrap.holm(np.array([0.9, 0.8])).tolist() == [1, 1]


@given(st.integers(2, 200), st.integers(0, 2**32))
def test_a_derangement_leaves_nothing_in_its_place(count, seed):
    order = controls.derange(count, seed)
    assert sorted(order) == list(range(count))
    assert not (order == np.arange(count)).any()
    assert order.tolist() == controls.derange(count, seed).tolist()


def test_noise_is_as_long_as_what_it_replaces_and_points_elsewhere():
    vectors = np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32) * 7
    noise = controls.noise_like(vectors, 0)
    assert np.linalg.norm(noise, axis=1) == pytest.approx(np.linalg.norm(vectors, axis=1), rel=1e-5)
    cosines = (noise * vectors).sum(axis=1) / np.linalg.norm(vectors, axis=1) ** 2
    assert abs(cosines.mean()) < 0.1
