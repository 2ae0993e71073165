"""The tiny models' figures as README and docs show them: tables between marks, and a plot.
Knows Markdown and matplotlib; nothing of how figures are measured."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.training.evaluate import SNAPSHOTS, STEPS, Shares, Sharpness

TITLES = {"sdxl": "SDXL", "flux": "Flux"}


def mean_and_spread(shares: Sequence[float]) -> str:
    """As percentages: the mean of the seeds, then the lowest and the highest."""
    mean = sum(shares) / len(shares)
    return f"{mean * 100:.1f} % ({min(shares) * 100:.1f} to {max(shares) * 100:.1f})"


def steps_table(shares: Shares) -> str:
    """The shares of right names by step."""
    columns = list(itertools.product(_families(shares), SNAPSHOTS))
    lines = [f"| step | {' | '.join(f'tiny {TITLES[family]}, {snapshot}' for family, snapshot in columns)} |"]
    lines.append("|---|" + "---|" * len(columns))
    for step in STEPS:
        cells = [mean_and_spread(shares[family, snapshot, step]) for family, snapshot in columns]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def quality_table(shares: Shares, sentences: Mapping[str, Sequence[float]], sharpness: Mapping[str, Sharpness]) -> str:
    """What a user wants to know of each model: names, sentences, and how sharp images can be at best."""
    families = _families(shares)
    rows = {
        f"names right at step {max(STEPS)}": [mean_and_spread(shares[one, "xt", max(STEPS)]) for one in families],
        "sentences that show what they name": [mean_and_spread(sentences[one]) for one in families],
        "autoencoder, held-out images": [f"{sharpness[one].held_out:.1f} dB" for one in families],
        "autoencoder, learned images": [f"{sharpness[one].learned:.1f} dB" for one in families],
    }
    lines = [f"| figure | {' | '.join(f'tiny {TITLES[family]}' for family in families)} |"]
    lines.append("|---|" + "---|" * len(families))
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def write_table(page: Path, mark: str, text: str) -> None:
    """Put a table between a page's marks, `<!-- mark -->` and `<!-- end -->`."""
    old = page.read_text(encoding="utf-8")
    marks = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    new = re.sub(marks, lambda found: f"{found[1]}{text}\n{found[2]}", old, flags=re.DOTALL)
    page.write_text(new, encoding="utf-8")


def plot(shares: Shares, file: Path) -> None:
    """A line for each family and snapshot, over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    colours = {"sdxl": "tab:blue", "flux": "tab:orange"}
    for family in _families(shares):
        for snapshot, style in (("x0", "-o"), ("xt", "--s")):
            seeds = [shares[family, snapshot, step] for step in STEPS]
            heights = [sum(step) / len(step) * 100 for step in seeds]
            axes.plot(range(len(STEPS)), heights, style, color=colours[family], label=f"tiny {family}, {snapshot}")
    axes.set_xticks(range(len(STEPS)), [str(step) for step in STEPS])
    axes.set(xlabel="step of 32", ylabel="nearest image is the right one, %", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _families(shares: Shares) -> list[str]:
    return sorted({family for family, _, _ in shares}, reverse=True)
