"""Ranks the gallery for one group of queries by every method, step, weight and control, and scores each ranking.
Knows vectors, rankings and metrics; nothing of files, intervals or texts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ray_app.evaluation import controls, metrics
from ray_app.evaluation.gallery_vectors import MOST, Gallery
from ray_app.evaluation.inputs import Inputs
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.queries import ScoredQuery, have_ground_truth
from ray_app.evaluation.search import Search, find_best

MEAN_AP, RECALL, OVERLAP, COSINE = "mAP", "Recall", "overlap", "cosine"
HEADLINE_K = 10


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is scored: one method at one step, with one weight, under one control."""

    method: str
    step: int | None
    """None for a method without proxies."""
    weight: float | None
    """None for a method without one."""
    control: str = controls.NONE


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric of an entry for each of its queries, in per cent: float64 (queries,)."""

    entry: Entry
    metric: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class GroupVectors:
    """The queries of one model and kind of snapshot, and their vectors: float32 (queries, D) each."""

    queries: list[ScoredQuery]
    steps: list[int]
    text: np.ndarray
    reference: np.ndarray | None
    direction: np.ndarray | None
    proxies: dict[int, np.ndarray]
    """By step."""
    other_seed: dict[int, np.ndarray]
    """The same of another image of each prompt; empty where there is none."""

    def inputs(self, step: int, control: str, seed: int) -> Inputs:
        """What methods score with at a step under a control."""
        proxy = self.proxies[step]
        if control == controls.SHUFFLED:
            term = proxy[controls.derange(len(proxy), seed)]
        elif control == controls.LEFT_OUT:
            term = np.zeros_like(proxy)
        elif control == controls.NOISE:
            term = controls.noise_like(proxy, seed)
        else:
            term = self.other_seed[step] if control == controls.OTHER_SEED else proxy
        return Inputs(self.text, proxy, term, self.reference, self.direction)

    def controls_of(self, method: str) -> list[str]:
        """The controls that say something about a method; `text` is what others are without the proxy."""
        if not METHODS[method].USES_PROXY:
            return [controls.NONE]
        names = [controls.NONE, controls.SHUFFLED, controls.NOISE] if len(self.queries) > 1 else [controls.NONE]
        if method == "ipcir":
            names.append(controls.LEFT_OUT)
        return [*names, controls.OTHER_SEED] if self.other_seed else names


def rank(
    group: GroupVectors, gallery: Gallery, methods: Sequence[str], weights: Sequence[float], seed: int
) -> dict[Entry, np.ndarray]:
    """The positions of each query's best images, best first, by entry: int32 (queries, 50)."""
    searches = dict(_searches(group, methods, weights, seed))
    return dict(zip(searches, find_best(gallery.vectors, list(searches.values()), MOST), strict=True))


def _searches(
    group: GroupVectors, methods: Sequence[str], weights: Sequence[float], seed: int
) -> Iterator[tuple[Entry, Search]]:
    for name in methods:
        method = METHODS[name]
        text = method.text_vectors(group.inputs(group.steps[-1], controls.NONE, seed))
        for control in group.controls_of(name):
            for step in group.steps if method.USES_PROXY else group.steps[-1:]:
                proxy = method.proxy_vectors(group.inputs(step, control, seed))
                for weight in weights if method.WEIGHT else [None]:
                    entry = Entry(name, step if method.USES_PROXY else None, weight, control)
                    yield entry, Search(text, proxy, method.combine, weight or 0.0)


def score(group: GroupVectors, gallery: Gallery, rankings: Mapping[Entry, np.ndarray]) -> list[Score]:
    """Every metric of every ranking; those that need ground truth only where the queries have it."""
    scores = []
    has_truth = have_ground_truth(group.queries)
    truth: dict[str, Any] = {}
    if has_truth:
        relevant = gallery.padded_positions([query.relevant for query in group.queries])
        targets = gallery.positions([query.target or query.relevant[0] for query in group.queries])
        truth = {"relevant": relevant, "target": np.array(targets), "count": (relevant >= 0).sum(axis=1)}
    for entry, best in rankings.items():
        if has_truth:
            scores += _truth_scores(entry, best, truth)
        last = rankings.get(dataclasses.replace(entry, step=group.steps[-1]))
        if entry.step is not None and last is not None and entry.control == controls.NONE:
            scores.append(Score(entry, f"{OVERLAP}@{best.shape[1]}", metrics.overlap(best, last)))
    for step in group.steps:
        values = metrics.cosine(group.proxies[step], group.proxies[group.steps[-1]])
        scores.append(Score(Entry("proxy", step, None), COSINE, values))
    return scores


def _truth_scores(entry: Entry, best: np.ndarray, truth: Mapping[str, Any]) -> Iterator[Score]:
    hits = metrics.find_hits(best, truth["relevant"])
    for k in metrics.CUTOFFS:
        yield Score(entry, f"{MEAN_AP}@{k}", metrics.average_precision(hits, truth["count"], k))
        yield Score(entry, f"{RECALL}@{k}", metrics.recall(best, truth["target"], k))


def headline(scores: Sequence[Score]) -> str:
    """The metric that reports and plots show: mAP@10, or without ground truth the overlap with the last step."""
    names = {score.metric for score in scores}
    truth = f"{MEAN_AP}@{HEADLINE_K}"
    return truth if truth in names else next(name for name in sorted(names) if name.startswith(OVERLAP))
