"""The answer in one table and one plot: score by step of every model and kind of snapshot, text alone beside it.
Knows the rows of evaluation.parquet; nothing of how they were measured."""

import io
from collections.abc import Sequence
from typing import Any

METRIC = "mAP@10"
LAST_STEP = "last step"
"""What the differences that count are to."""
COLOURS = {"proxy": "#0b57d0", "text+proxy": "#2e7d32"}
STYLES = {"x0": "-o", "xt": "--s"}
TEXT_COLOUR = "#1d1d1f"

Row = dict[str, Any]


class Scores:
    """The scores of an evaluation, those of the queries' own proxies at one weight.

    Args:
        rows: of evaluation.parquet, with any of its columns but `model` to `n`.
    """

    def __init__(self, rows: Sequence[Row]):
        own = [row for row in rows if row["metric"] == METRIC and row["control"] == "none"]
        scores = [row for row in own if row["compared_with"] is None]
        self.text = next((row for row in scores if row["method"] == "text"), None)
        """Of text alone, which is the same for all models."""
        of_proxies = [row for row in scores if row["step"] is not None]
        self.models = list(dict.fromkeys(row["model"] for row in of_proxies))
        self.snapshots = list(dict.fromkeys(row["snapshot"] for row in of_proxies))
        self.methods = list(dict.fromkeys(row["method"] for row in of_proxies))
        self.steps = sorted({row["step"] for row in of_proxies})
        self._scores = {_key(row): row for row in of_proxies}
        self._to_last = {_key(row): row for row in own if row["compared_with"] == LAST_STEP}

    def line(self, model: str, snapshot: str, method: str) -> list[Row]:
        """The scores by step; empty where none were measured."""
        keys = [(model, snapshot, method, step) for step in self.steps]
        return [self._scores[key] for key in keys if key in self._scores]

    def to_last(self, model: str, snapshot: str, method: str) -> Row | None:
        """The difference of the step before the last one to it."""
        return self._to_last.get((model, snapshot, method, self.steps[-2])) if len(self.steps) > 1 else None

    def enough(self, model: str, snapshot: str, method: str, level: float = 0.05) -> Row | None:
        """The difference to the last step of the first step for which none is shown, nor for any later one."""
        found = None
        for step in reversed(self.steps[:-1]):
            row = self._to_last.get((model, snapshot, method, step))
            if row is None or (row["p_holm"] or 1.0) < level:
                break
            found = row
        return found


def table(scores: Scores, method: str = "proxy") -> list[list[str]]:
    """The scores of a method by step, a column per model and kind of snapshot: cells, the header first."""
    columns = [(model, snapshot) for model in scores.models for snapshot in scores.snapshots]
    lines = [scores.line(*column, method) for column in columns]
    cells = [["step", *(f"{model} {snapshot}" for model, snapshot in columns)]]
    for number, step in enumerate(scores.steps):
        cells.append([str(step), *(f"{line[number]['value']:.1f}" if line else "" for line in lines)])
    return cells


def sentences(scores: Scores, method: str = "proxy") -> list[str]:
    """For each model and kind of snapshot: the first step that retrieves like the last, as far as can be told."""
    told, last = [], scores.steps[-1]
    for model in scores.models:
        for snapshot in scores.snapshots:
            row = scores.enough(model, snapshot, method)
            finding = f"from step {row['step']} on no difference to step {last} is shown" if row else None
            row = row or scores.to_last(model, snapshot, method)
            if row is not None:
                finding = finding or f"step {row['step']} still differs from step {last}"
                told.append(
                    f"{model} {snapshot}: {finding} ({row['value']:+.1f} at step {row['step']},"
                    f" 95 %: {row['low']:.1f} to {row['high']:.1f}{_by_holm(row['p_holm'])})"
                )
    return told


def _by_holm(p: float | None) -> str:
    """Beside an interval of one step, the p-value that takes all steps into account."""
    if p is None:
        return ""
    return f", p {'< 0.01' if p < 0.01 else f'= {p:.2f}'} after Holm"


def plot(scores: Scores, note: str = "") -> bytes:
    """A PNG with a panel per model.

    Args:
        note: a text that the file keeps, unseen.
    """
    from matplotlib.figure import Figure  # not pyplot: that would look for a display

    figure = Figure(figsize=(1 + 3.6 * len(scores.models), 3.5), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(scores.models), squeeze=False, sharey=True)[0]
    for model, axes in zip(scores.models, panels, strict=True):
        _panel(axes, scores, model)
    panels[0].set_ylabel(f"{METRIC} (%), 95 % interval")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None, "Description": note})
    return buffer.getvalue()


def _panel(axes: Any, scores: Scores, model: str) -> None:
    for method in scores.methods:
        for snapshot in scores.snapshots:
            line = scores.line(model, snapshot, method)
            if line:
                x, colour = [row["step"] for row in line], COLOURS.get(method, TEXT_COLOUR)
                low, high = [row["low"] for row in line], [row["high"] for row in line]
                label = f"{method}, {snapshot}"
                axes.plot(x, [row["value"] for row in line], STYLES[snapshot], color=colour, label=label, markersize=4)
                axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
    if scores.text is not None:
        axes.axhline(scores.text["value"], color=TEXT_COLOUR, linestyle=":", label="text alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(scores.steps, [str(step) for step in scores.steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(model)
    axes.set_xlabel(f"step of {scores.steps[-1]}")


def _key(row: Row) -> tuple[str, str, str, int]:
    return row["model"], row["snapshot"], row["method"], row["step"]
