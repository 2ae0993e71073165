"""One model and kind of snapshot of an output, scored: which of its queries count, and by which methods.
Knows the order of things within a group; nothing of where results are written."""

import dataclasses

import numpy as np

from ray_app.errors import InputRefused
from ray_app.evaluation import controls, proxies, scores_table, scoring, verdict
from ray_app.evaluation import inputs as method_inputs
from ray_app.evaluation.features import WRITE_THEM, Features
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.options import Evaluate
from ray_app.evaluation.queries import ScoredQuery
from ray_app.evaluation.scoring import Entry, GroupVectors
from ray_app.evaluation.verdict import Found
from ray_app.messages import LOG

MOST_NAMED = 10


@dataclasses.dataclass
class Group:
    """One model and kind of snapshot, scored."""

    slots: proxies.Slots
    vectors: GroupVectors
    left_out: list[int]
    rankings: dict[Entry, np.ndarray]
    scores: list[scoring.Score]
    rows: list[scores_table.Row]
    found: Found

    @property
    def name(self) -> str:
        """As plots and pages call it."""
        return f"{self.slots.model} {self.slots.snapshot}"


def score_group(
    options: Evaluate, requested: list[ScoredQuery], features: Features, gallery: Gallery, slots: proxies.Slots
) -> Group:
    """Rank the gallery for the queries that count, and score the rankings.

    Raises:
        Refused: no query counts, or a method was named that lacks vectors.
    """
    vectors, left_out = _vectors(options, requested, features, slots)
    methods = _methods(options, vectors)
    weights = options.swept_weights()
    rankings = scoring.rank(vectors, gallery, methods, weights, options.seed)
    scores = scoring.score(vectors, gallery, rankings)
    rows = scores_table.rows(scores, vectors.queries, slots.steps[-1], options.bootstrap, options.seed)
    found = verdict.find(rows, slots.steps, scoring.headline(scores), methods, weights)
    return Group(slots, vectors, left_out, rankings, scores, rows, found)


def _vectors(
    options: Evaluate, requested: list[ScoredQuery], features: Features, slots: proxies.Slots
) -> tuple[GroupVectors, list[int]]:
    """The vectors of the queries that have a text and proxies at every step, and the ids of the others."""
    with_proxies = slots.queries(options.image_index)
    used = [query for query in requested if query.query_id in with_proxies and method_inputs.has_text(query, features)]
    used_ids = [query.query_id for query in used]
    left_out = sorted({query.query_id for query in requested} - set(used_ids))
    name = f"{slots.model} {slots.snapshot}"
    if not used:
        raise InputRefused(
            f"{options.json_file}: no query has vectors of its text and of {name} images at each of the steps"
            f" {' '.join(map(str, slots.steps))}; {WRITE_THEM}"
        )
    if left_out:
        named = ", ".join(map(str, left_out[:MOST_NAMED]))
        more = f" and {len(left_out) - MOST_NAMED:,} more" if len(left_out) > MOST_NAMED else ""
        LOG.warning(f"{name}: left out of all steps, for want of vectors of text or images: queries {named}{more}")
    if slots.incomplete:
        LOG.warning(f"{name}: {slots.incomplete:,} slots don't count: some step has no image or no vector")
    other = options.image_index + 1
    has_other_seed = slots.queries(other).issuperset(used_ids)
    vectors = GroupVectors(
        used,
        slots.steps,
        method_inputs.texts(used, features),
        method_inputs.references(used, features),
        method_inputs.directions(used, features),
        {step: slots.proxies(features, step, options.image_index, used_ids) for step in slots.steps},
        {step: slots.proxies(features, step, other, used_ids) for step in slots.steps} if has_other_seed else {},
    )
    return vectors, left_out


def _methods(options: Evaluate, vectors: GroupVectors) -> list[str]:
    """The methods to score, text first; those that lack vectors are refused if they were named."""
    inputs = vectors.inputs(vectors.steps[-1], controls.NONE, options.seed)
    methods = []
    for name, method in METHODS.items():
        if name != "text" and options.methods and name not in options.methods:
            continue
        missing = method.missing(inputs)
        if missing is None:
            methods.append(name)
        elif name in options.methods:
            raise InputRefused(f"--methods {name}: needs {missing}; {WRITE_THEM}", flag="methods")
        else:
            LOG.warning(f"{name}: not scored, it needs {missing}")
    return methods
