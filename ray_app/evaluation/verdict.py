"""What a group's rows say, in sentences: which step is enough, and whether the proxies are what helps.
Knows rows; nothing of files. All numbers in it are also in the table."""

import dataclasses
from collections.abc import Sequence

from ray_app.evaluation import controls
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.scores_table import LAST_STEP, TEXT, Row
from ray_app.evaluation.scoring import MEAN_AP, Entry

LEVEL = 0.05
FEW_QUERIES = 30
"""With fewer a bootstrap over queries is too sure of itself."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A group's rows by what they are of."""

    rows: dict[tuple[Entry, str, str | None], Row]
    steps: list[int]
    metric: str
    """The one that is reported."""
    weights: dict[str, float | None]
    """The weight of each method that is reported; None for a method without one."""

    def score(self, entry: Entry) -> Row | None:
        """An entry's reported score."""
        return self.rows.get((entry, self.metric, None))

    def difference(self, entry: Entry, other: str) -> Row | None:
        """What its score has more than another's."""
        return self.rows.get((entry, self.metric, other))

    def queries(self) -> int:
        """How many queries were scored."""
        return max(row.n for row in self.rows.values())

    def entries(self, method: str, control: str = controls.NONE) -> list[Entry]:
        """A method's entries at the reported weight under a control, by step; none where it was not scored."""
        weight = self.weights[method]
        steps = self.steps if METHODS[method].USES_PROXY else [None]
        named = [Entry(method, step, weight, control) for step in steps]
        return [entry for entry in named if self.score(entry)]

    def best_method(self) -> str | None:
        """The method with proxies that has the highest score at the last step; None where none was scored."""
        last = {name: self.entries(name)[-1] for name in self.weights if METHODS[name].USES_PROXY}
        values = {name: row.value for name, entry in last.items() if (row := self.score(entry))}
        return max(values, key=values.__getitem__, default=None)


def find(rows: Sequence[Row], steps: list[int], metric: str, methods: Sequence[str], weights: Sequence[float]) -> Found:
    """Index rows, and choose the weight to report: the best at the last step, without ground truth the middle one.

    The weight at which the proxy has no share is reported only if no other was swept: all steps are equal there.
    """
    by_key = {(row.entry, row.metric, row.compared_with): row for row in rows}
    chosen: dict[str, float | None] = {}
    for method in methods:
        usable = [weight for weight in weights if weight != METHODS[method].WITHOUT_PROXY] or weights
        if METHODS[method].WEIGHT is None:
            chosen[method] = None
        elif metric.startswith(MEAN_AP):
            values = [by_key[Entry(method, steps[-1], weight), metric, None].value for weight in usable]
            chosen[method] = usable[values.index(max(values))]
        else:
            chosen[method] = usable[len(usable) // 2]
    return Found(by_key, steps, metric, chosen)


def report(found: Found, model: str, snapshot: str) -> list[list[str]]:
    """The reported metric of each method and step, with the controls in the same row: cells, the header first."""
    shown = [name for name in controls.CONTROLS if any(found.entries(method, name) for method in found.weights)][1:]
    table = [["model", "snapshot", "method", "weight", "step", found.metric, "95 %", *shown, "n"]]
    for method, weight in found.weights.items():
        for entry in found.entries(method):
            row = found.rows[entry, found.metric, None]
            beside = [found.score(dataclasses.replace(entry, control=control)) for control in shown]
            table.append(
                [
                    model,
                    snapshot,
                    method,
                    "" if weight is None else f"{weight:g}",
                    "" if entry.step is None else str(entry.step),
                    f"{row.value:.1f}",
                    _interval(row),
                    *("" if other is None else f"{other.value:.1f}" for other in beside),
                    f"{row.n:,}",
                ]
            )
    return table


def sentences(found: Found) -> list[str]:
    """The group's findings, a sentence each."""
    told = []
    for method in found.weights:
        if METHODS[method].USES_PROXY:
            told += _of_steps(found, method) + _of_controls(found, method)
    swept = [f"{method} at {weight:g}" for method, weight in found.weights.items() if weight is not None]
    if swept and found.metric.startswith(MEAN_AP):
        told.append(
            f"weights: {', '.join(swept)}, the best of the last step on these same queries, so their scores are a"
            " little too high; steps and controls are compared at one weight"
        )
    if found.queries() < FEW_QUERIES:
        told.append(
            f"only {found.queries()} queries: from fewer than {FEW_QUERIES} the bootstrap's intervals come out too"
            " narrow and its p-values too small"
        )
    return told


def _of_steps(found: Found, method: str) -> list[str]:
    last = found.steps[-1]
    told = []
    for step in found.steps[:-1]:
        entry = Entry(method, step, found.weights[method])
        row = found.difference(entry, LAST_STEP)
        if row is not None:
            told.append(
                f"{method}: step {step} is within {abs(row.value):.1f} {found.metric} of step {last}"
                f" (step {step} minus step {last}: {row.value:+.1f}, 95 %: {_interval(row)}, n = {row.n};"
                f" {_significance(row, len(found.steps) - 1)})"
            )
        elif (row := found.score(entry)) is not None:
            told.append(
                f"{method}: step {step} has {row.value:.1f} % of step {last}'s top {found.metric.split('@')[1]}"
                f" (95 %: {_interval(row)}, n = {row.n})"
            )
    return told


def _significance(row: Row, steps: int) -> str:
    p = 1.0 if row.p_holm is None else row.p_holm
    return f"{'differs' if p < LEVEL else 'no difference shown'}, p = {p:.2g} after Holm over {steps} steps"


def _of_controls(found: Found, method: str) -> list[str]:
    """Whether a gain over text alone, at the last step, is one of the query's own proxies."""
    entry = Entry(method, found.steps[-1], found.weights[method])
    gain = found.difference(entry, TEXT)
    if gain is None or method == "proxy":
        return []
    start = (
        f"{method}: step {entry.step} gains {gain.value:+.1f} {found.metric} over text alone (95 %: {_interval(gain)})"
    )
    if gain.low is None or gain.low <= 0:
        return [f"{start}: no gain shown"]
    shuffled = found.difference(dataclasses.replace(entry, control=controls.SHUFFLED), TEXT)
    own = found.difference(entry, controls.SHUFFLED)
    if shuffled is None or own is None:
        return [start]
    other = f"proxies shuffled among queries gain {shuffled.value:+.1f} (95 %: {_interval(shuffled)})"
    if own.low is not None and own.low > 0:
        return [f"{start}; {other}: own proxies are worth {own.value:+.1f} more (95 %: {_interval(own)})"]
    return [
        f"{start}; {other}: the gain is also had by the shuffled control, so it is not shown to come from the query's"
        " own proxies"
    ]


def _interval(row: Row) -> str:
    return f"{row.low:.1f} to {row.high:.1f}"
