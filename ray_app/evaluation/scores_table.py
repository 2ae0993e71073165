"""The rows of evaluation.parquet: means over queries with their intervals, and differences, which are paired.
Knows scores per query; nothing of where they come from or who reads the table."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from actors import families
from ray_app.evaluation import bootstrap, controls
from ray_app.evaluation.metrics import CUTOFFS
from ray_app.evaluation.queries import ScoredQuery
from ray_app.evaluation.scoring import HEADLINE_K, MEAN_AP, RECALL, Entry, Score

LAST_STEP, TEXT = "last step", "text"
"""What a difference is to, beside the names of controls."""

COLUMNS = {
    "model": (pa.string(), families.listed()),
    "snapshot": (pa.string(), "xt or x0"),
    "step": (pa.int16(), "whose images are the proxies; null for a method without proxies"),
    "encoder": (pa.string(), "what gave the vectors"),
    "method": (pa.string(), "text, proxy, text+proxy, ipcir"),
    "weight": (pa.float64(), "text+proxy: share of the proxy; ipcir: λ; null for a method without one"),
    "control": (pa.string(), "none: the query's own proxies; shuffled, left_out, noise, other_seed"),
    "metric": (pa.string(), "mAP@k, Recall@k, mAP@10 (semantic aspect), overlap@50, cosine"),
    "compared_with": (
        pa.string(),
        "null: a score; else this row is the score minus that of last step, text, a control",
    ),
    "value": (pa.float64(), "mean over queries, in per cent"),
    "low": (pa.float64(), "lower end of the 95 % interval; null for what a server scored"),
    "high": (pa.float64(), "upper end"),
    "n": (pa.int64(), "queries"),
    "p_holm": (pa.float64(), "differences to the last step: p-value, adjusted for the number of steps (Holm)"),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])


@dataclasses.dataclass
class Row:
    """One row, without the columns that all rows of a group share."""

    entry: Entry
    metric: str
    compared_with: str | None
    value: float
    low: float | None
    high: float | None
    n: int
    p_holm: float | None = None


def rows(scores: Sequence[Score], queries: Sequence[ScoredQuery], last_step: int, draws: int, seed: int) -> list[Row]:
    """The rows of a group: each score, each semantic aspect's mAP@10, and every requested difference.

    Args:
        draws, seed: of the bootstrap.
    """
    differences = list(_differences(scores, last_step))
    made = _rows([(score, None) for score in scores] + differences, draws, seed)
    aspects = sorted({aspect for query in queries for aspect in query.aspects})
    headline = f"{MEAN_AP}@{HEADLINE_K}"
    for aspect in aspects:
        has_it = np.array([aspect in query.aspects for query in queries])
        of_aspect = [
            (Score(score.entry, f"{headline} ({aspect})", score.values[has_it]), None)
            for score in scores
            if score.metric == headline and score.entry.control == controls.NONE
        ]
        made += _rows(of_aspect, draws, seed)
    _adjust(made)
    return made


def _differences(scores: Sequence[Score], last_step: int) -> Iterator[tuple[Score, str]]:
    """Per query, what a score has more than that of the last step, of text alone, and of each control."""
    names = {f"{name}@{k}" for name in (MEAN_AP, RECALL) for k in CUTOFFS}
    values = {(score.entry, score.metric): score.values for score in scores if score.metric in names}
    text = Entry("text", None, None)
    for (entry, metric), own in values.items():
        others: dict[str, Entry] = {}
        if entry.step is not None and entry.control in (controls.NONE, controls.SHUFFLED):
            others[TEXT] = text
        if entry.step is not None and entry.control == controls.NONE:
            if entry.step != last_step:
                others[LAST_STEP] = dataclasses.replace(entry, step=last_step)
            others |= {
                name: dataclasses.replace(entry, control=name) for name in controls.CONTROLS if name != entry.control
            }
        for name, other in others.items():
            if (other, metric) in values:
                yield Score(entry, metric, own - values[other, metric]), name


def _rows(scored: Sequence[tuple[Score, str | None]], draws: int, seed: int) -> list[Row]:
    if not scored:
        return []
    values = np.stack([score.values for score, _ in scored], axis=1)
    low, high, p = bootstrap.intervals(values, draws, seed)
    means = values.mean(axis=0)
    made = []
    for column, (score, compared_with) in enumerate(scored):
        ends = float(means[column]), float(low[column]), float(high[column])
        row = Row(score.entry, score.metric, compared_with, *ends, len(values))
        row.p_holm = float(p[column]) if compared_with == LAST_STEP else None
        made.append(row)
    return made


def _adjust(made: Sequence[Row]) -> None:
    """Adjust the p-values of the steps that one metric of one method compares with its last."""
    families_of_tests: dict[Any, list[Row]] = {}
    for row in made:
        if row.p_holm is not None:
            families_of_tests.setdefault((row.entry.method, row.entry.weight, row.metric), []).append(row)
    for tests in families_of_tests.values():
        adjusted = bootstrap.holm(np.array([row.p_holm for row in tests]))
        for row, p in zip(tests, adjusted, strict=True):
            row.p_holm = float(p)


def to_table(model: str, snapshot: str, encoder: str, made: Sequence[Row]) -> pa.Table:
    """The rows of a group as a table of `SCHEMA`."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in made:
        values = {"model": model, "snapshot": snapshot, "encoder": encoder, **vars(row.entry), **vars(row)}
        for name, column in columns.items():
            column.append(values[name])
    return pa.table(columns, schema=SCHEMA)
