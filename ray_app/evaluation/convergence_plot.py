"""The plot of `convergence`: PSNR and SSIM by step, one line per model and snapshot, with an interquartile band.
Knows matplotlib; nothing of images or files."""

import io
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from actors.families import FAMILIES

MEASURES = {"psnr": "PSNR to the last step's image (dB)", "ssim": "SSIM to the last step's image"}
STYLES = {"xt": "-", "x0": "--"}


class Spread(NamedTuple):
    """Median and quartiles of a measure over slots. No mean: PSNR may be infinite."""

    low: float
    median: float
    high: float


class Line(NamedTuple):
    """One step of one kind of snapshot, over all slots that have it."""

    model: str
    snapshot: str
    step: int
    last_step: int
    images: int
    psnr: Spread
    ssim: Spread


def png(lines: Sequence[Line]) -> bytes:
    """The plot as a PNG, without a display. Infinite medians and quartiles (equal images) are left out."""
    from matplotlib.figure import Figure  # not pyplot: that would look for a display

    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    steps = sorted({line.step for line in lines})
    for axes, (measure, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for (model, snapshot), group in itertools.groupby(lines, lambda line: (line.model, line.snapshot)):
            colour = FAMILIES[model].colour
            _plot_measure(axes, list(group), measure, colour, STYLES[snapshot], f"{model} {snapshot}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if lines:
        figure.axes[0].legend(title="median, band: middle half of the slots", frameon=False)
        last = {line.last_step for line in lines}
        figure.suptitle(f"How similar is step k to step {' or '.join(map(str, sorted(last)))}?")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _plot_measure(axes: Any, group: list[Line], measure: str, colour: str, style: str, label: str) -> None:
    steps = [line.step for line in group]
    spreads = np.array([getattr(line, measure) for line in group], float)
    spreads[~np.isfinite(spreads)] = np.nan  # not drawn
    low, median, high = spreads.T
    axes.plot(steps, median, style, color=colour, marker="o", markersize=4, label=label)
    axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
