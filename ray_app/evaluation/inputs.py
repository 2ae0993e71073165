"""What a method scores with: the vectors of one group of queries, row by row the same queries.
Knows features and queries; nothing of galleries or scores."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ray_app.evaluation.features import Features, lengths
from ray_app.evaluation.queries import ScoredQuery


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Vectors of the queries at one step under one control: float32 (queries, D) each."""

    text: np.ndarray
    """Mean of the unit vectors of a query's prompts, of those that have one."""
    proxy: np.ndarray
    """Mean of the unit vectors of its images at the step."""
    proxy_term: np.ndarray
    """What stands for the proxy: `proxy`, or what a control puts into its place."""
    reference: np.ndarray | None = None
    """Unit vector of its reference photo; None where any query has none."""
    direction: np.ndarray | None = None
    """Mean over prompts of the prompt's unit vector minus that of the caption at the same place; None likewise."""


def has_text(query: ScoredQuery, features: Features) -> bool:
    """Whether any prompt of a query has a vector."""
    return any(text in features.of_text for text in query.prompts)


def texts(queries: Sequence[ScoredQuery], features: Features) -> np.ndarray:
    """The mean of the unit vectors of each query's prompts: float32 (queries, D)."""
    return _means(
        [[features.of_text[text] for text in query.prompts if text in features.of_text] for query in queries], features
    )


def references(queries: Sequence[ScoredQuery], features: Features) -> np.ndarray | None:
    """The unit vectors of the reference photos; None if any has none."""
    rows = [features.of_name.get(query.reference) for query in queries]
    return None if None in rows else features.unit_vectors(rows)


def directions(queries: Sequence[ScoredQuery], features: Features) -> np.ndarray | None:
    """How the prompts differ from the captions of the reference photo; None if any query has no such pair."""
    after: list[list[int]] = []
    before: list[list[int]] = []
    for query in queries:
        pairs = zip(query.prompts, query.captions, strict=False)
        known = [pair for pair in pairs if all(text in features.of_text for text in pair)]
        if not known:
            return None
        after.append([features.of_text[prompt] for prompt, _ in known])
        before.append([features.of_text[caption] for _, caption in known])
    return _means(after, features) - _means(before, features)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same directions with length 1; zeros stay zeros."""
    length = lengths(vectors)[:, None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _means(rows: Sequence[Sequence[int]], features: Features) -> np.ndarray:
    counts = np.array([len(of_query) for of_query in rows])
    vectors = features.unit_vectors([row for of_query in rows for row in of_query])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.add.reduceat(vectors, starts, axis=0) / counts[:, None].astype(np.float32)
