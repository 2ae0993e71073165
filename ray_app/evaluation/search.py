"""The best images of a gallery for many queries, methods and weights at once, in blocks that fit a processor's cache.
Knows vectors and how scores are combined; nothing of what they are scores of.

Similarities are one matrix product per matrix of vectors and block; each weight combines the same two blocks. Exact:
of equal scores the image at the lower position of the gallery wins.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

IMAGES_A_BLOCK = 8192
QUERIES_A_CHUNK = 64

Buffers = tuple[np.ndarray, np.ndarray]
Combine = Callable[[Any, Any, float, Buffers], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """Rank the gallery by the scores of `combine`, see `methods.Method`.

    Matrices that are the same object are multiplied once.
    """

    text: np.ndarray | None
    proxy: np.ndarray | None
    combine: Combine
    weight: float = 0.0


def find_best(gallery: np.ndarray, searches: Sequence[Search], count: int) -> list[np.ndarray]:
    """The positions of each query's `count` best images (all, of a smaller gallery), best first.

    Args:
        gallery: float32 (images, D).

    Returns:
        For each search int32 (queries, count).
    """
    count = min(count, len(gallery))
    found = [_Best(_queries(search), count) for search in searches]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(gallery), IMAGES_A_BLOCK):
            block = gallery[start : start + IMAGES_A_BLOCK].T
            for tasks in _by_matrices(block, searches, found):
                for done in [pool.submit(_rank_chunk, start, *task) for task in tasks]:
                    done.result()
    return [best.positions for best in found]


class _Best:
    """The best images so far of each query, best first, by position where scores are equal."""

    def __init__(self, queries: int, count: int):
        self.scores = np.full((queries, count), -np.inf, np.float32)
        self.positions = np.zeros((queries, count), np.int32)

    def add(self, first: int, scores: np.ndarray, start: int, is_candidate: np.ndarray) -> None:
        """Take in the scores of a later block of the gallery for queries from `first` on.

        Args:
            scores: float32 (queries of the chunk, images of the block).
            start: the position of the block's first image.
            is_candidate: bool, of the same shape, to compute in.
        """
        queries, images = scores.shape
        kept_scores = self.scores[first : first + queries]
        kept_positions = self.positions[first : first + queries]
        count = kept_scores.shape[1]
        # a later image replaces only one with a lower score
        np.greater(scores, kept_scores[:, -1:], out=is_candidate)
        if start == 0 and images > count:
            worst = np.partition(scores, images - count, axis=1)[:, images - count, None]
            np.greater_equal(scores, worst, out=is_candidate)
        flat = np.flatnonzero(is_candidate)
        if not len(flat):
            return
        row, column = np.divmod(flat, images)
        per_row = np.bincount(row, minlength=queries)
        place = count + np.arange(len(flat)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
        # kept images and candidates side by side, both by position among equal scores: a stable sort keeps them so
        all_scores = np.full((queries, count + per_row.max()), -np.inf, np.float32)
        all_positions = np.zeros(all_scores.shape, np.int32)
        all_scores[:, :count], all_positions[:, :count] = kept_scores, kept_positions
        all_scores[row, place], all_positions[row, place] = scores[row, column], start + column
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, :count]
        kept_scores[:] = np.take_along_axis(all_scores, order, axis=1)
        kept_positions[:] = np.take_along_axis(all_positions, order, axis=1)


def _queries(search: Search) -> int:
    vectors = search.text if search.proxy is None else search.proxy
    assert vectors is not None
    return len(vectors)


def _by_matrices(
    block: np.ndarray, searches: Sequence[Search], found: Sequence[_Best]
) -> Iterator[list[tuple[list[tuple[Search, _Best]], Any, Any, int]]]:
    """For each pair of matrices its searches, with their similarities to the block, in chunks of queries.

    Only the similarities of one matrix of proxies are held at a time.
    """
    groups: dict[int, list[tuple[Search, _Best]]] = {}
    for search, best in zip(searches, found, strict=True):
        groups.setdefault(id(search.proxy), []).append((search, best))
    distinct_texts = {id(search.text): search.text for search in searches if search.text is not None}
    texts = {text_id: text @ block for text_id, text in distinct_texts.items()}
    for group in groups.values():
        proxy = group[0][0].proxy
        by_proxy = None if proxy is None else proxy @ block
        tasks = []
        for text_id in dict.fromkeys(id(search.text) for search, _ in group):
            members = [(search, best) for search, best in group if id(search.text) == text_id]
            starts = range(0, _queries(members[0][0]), QUERIES_A_CHUNK)
            tasks += [(members, texts.get(text_id), by_proxy, first) for first in starts]
        yield tasks


def _rank_chunk(start: int, members: list[tuple[Search, _Best]], by_text: Any, by_proxy: Any, first: int) -> None:
    chunk = slice(first, first + QUERIES_A_CHUNK)
    by_text = None if by_text is None else by_text[chunk]
    by_proxy = None if by_proxy is None else by_proxy[chunk]
    shape = (by_text if by_proxy is None else by_proxy).shape
    buffers, is_candidate = (np.empty(shape, np.float32), np.empty(shape, np.float32)), np.empty(shape, bool)
    for search, best in members:
        best.add(first, search.combine(by_text, by_proxy, search.weight, buffers), start, is_candidate)
