"""The plots of `evaluate`: the reported score by step, and by weight, with bands and the controls beside.
Knows matplotlib and what was found; nothing of files."""

import io
from typing import Any

from ray_app.evaluation import controls
from ray_app.evaluation.methods import METHODS
from ray_app.evaluation.scoring import Entry
from ray_app.evaluation.verdict import Found

COLOURS = {
    controls.NONE: "#0b57d0",
    controls.SHUFFLED: "#b3261e",
    controls.LEFT_OUT: "#7b5ea7",
    controls.NOISE: "#8a8a8a",
    controls.OTHER_SEED: "#2e7d32",
}
TEXT_COLOUR = "#1d1d1f"
Groups = dict[str, Found]


def by_step(groups: Groups) -> bytes:
    """A PNG: a row per model and kind of snapshot, a column per method that uses proxies."""
    return _grid(groups, _plot_steps, "step", ())


def by_weight(groups: Groups) -> bytes | None:
    """The same over the weight, at each step, and shuffled at the last; None without a method that has a weight."""
    if not any(weight is not None for found in groups.values() for weight in found.weights.values()):
        return None
    return _grid(groups, _plot_weights, "weight", ("proxy",))


def _grid(groups: Groups, plot: Any, x: str, without: tuple[str, ...]) -> bytes:
    from matplotlib.figure import Figure  # not pyplot: that would look for a display

    methods = dict.fromkeys(name for found in groups.values() for name in found.weights if METHODS[name].USES_PROXY)
    columns = [name for name in methods if name not in without]
    size = (1.5 + 4.2 * len(columns), 0.6 + 3.6 * len(groups))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    grid = figure.subplots(len(groups), len(columns), squeeze=False, sharey="row")
    for (name, found), row in zip(groups.items(), grid, strict=True):
        for method, axes in zip(columns, row, strict=True):
            if method in found.weights:
                plot(axes, found, method)
                axes.legend(frameon=False, fontsize="x-small")
            axes.set_title(f"{name}, {method}", fontsize="medium")
            axes.set_xlabel(x if x == "step" else f"weight ({METHODS[method].WEIGHT})")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"{found.metric} (%), 95 % interval")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plot_steps(axes: Any, found: Found, method: str) -> None:
    for control, label in controls.CONTROLS.items():
        entries = found.entries(method, control)
        if entries:
            style = "-" if control == controls.NONE else "--"
            _line(axes, found, entries, [entry.step for entry in entries], COLOURS[control], label, style=style)
    _text_alone(axes, found)
    axes.set_xscale("log", base=2)
    axes.set_xticks(found.steps, [str(step) for step in found.steps])
    axes.minorticks_off()
    if found.weights[method] is not None:
        axes.text(0.02, 0.02, f"weight {found.weights[method]:g}", transform=axes.transAxes, fontsize="x-small")


def _plot_weights(axes: Any, found: Found, method: str) -> None:
    from matplotlib import colormaps

    weights = sorted(
        {entry.weight for entry, _, _ in found.rows if entry.method == method and entry.weight is not None}
    )
    shades = colormaps["viridis_r"]
    for number, step in enumerate(found.steps):
        entries = [Entry(method, step, weight) for weight in weights]
        shade = shades(0.15 + 0.8 * number / max(1, len(found.steps) - 1))
        _line(axes, found, entries, weights, shade, f"step {step}", step == found.steps[-1])
    shuffled = [Entry(method, found.steps[-1], weight, controls.SHUFFLED) for weight in weights]
    if all(found.score(entry) for entry in shuffled):
        _line(axes, found, shuffled, weights, COLOURS[controls.SHUFFLED], f"shuffled, step {found.steps[-1]}")
    _text_alone(axes, found)


def _line(
    axes: Any,
    found: Found,
    entries: list[Entry],
    x: list[Any],
    colour: Any,
    label: str,
    with_band: bool = True,
    style: str = "-",
) -> None:
    rows = [row for entry in entries if (row := found.score(entry))]
    axes.plot(x, [row.value for row in rows], style, marker="o", markersize=3, color=colour, label=label)
    if with_band:
        low, high = [row.low for row in rows], [row.high for row in rows]
        axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)


def _text_alone(axes: Any, found: Found) -> None:
    row = found.score(Entry("text", None, None))
    if row is not None:
        axes.axhline(row.value, color=TEXT_COLOUR, linestyle=":", label="text alone")
