"""The search finds exactly the best images, of equal scores those that come first in the gallery."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_app.evaluation import search
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.search import Search, find_best


def by_sorting(scores: np.ndarray, count: int) -> list[list[int]]:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count].tolist()


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_the_best_are_those_of_sorting_everything(images, queries, count, block, chunk, seed):
    """Vectors of few small whole numbers: scores are exact and many are equal, within and across blocks."""
    chance = np.random.default_rng(seed)
    gallery, text, proxy = (chance.integers(-1, 2, (rows, 3)).astype(np.float32) for rows in (images, queries, queries))
    combine = METHODS["text+proxy"].combine
    searches = [
        Search(text, None, METHODS["text"].combine),
        Search(None, proxy, METHODS["proxy"].combine),
        *(Search(text, proxy, combine, weight) for weight in (0.0, 0.5, 1.0)),
    ]
    sizes = search.IMAGES_A_BLOCK, search.QUERIES_A_CHUNK
    search.IMAGES_A_BLOCK, search.QUERIES_A_CHUNK = block, chunk
    try:
        found = find_best(gallery, searches, count)
    finally:
        search.IMAGES_A_BLOCK, search.QUERIES_A_CHUNK = sizes
    by_text, by_proxy = text @ gallery.T, proxy @ gallery.T
    expected = [by_text, by_proxy, by_text, (by_text + by_proxy) / 2, by_proxy]
    assert [best.tolist() for best in found] == [by_sorting(scores, count) for scores in expected]


def test_of_equal_scores_the_first_images_of_the_gallery_are_kept():
    gallery = np.ones((10_000, 2), np.float32)
    gallery[[7_000, 9_999]] = 2
    query = np.ones((1, 2), np.float32)
    (best,) = find_best(gallery, [Search(query, None, METHODS["text"].combine)], 50)
    assert best[0].tolist() == [7_000, 9_999, *range(48)]


def test_real_vectors_over_several_blocks():
    chance, size = np.random.default_rng(3), search.IMAGES_A_BLOCK
    gallery = chance.standard_normal((9_000, 16)).astype(np.float32)
    text = chance.standard_normal((130, 16)).astype(np.float32)
    (best,) = find_best(gallery, [Search(text, None, METHODS["text"].combine)], 50)
    scores = np.concatenate([text @ gallery[start : start + size].T for start in range(0, 9_000, size)], axis=1)
    assert best.tolist() == by_sorting(scores, 50)
