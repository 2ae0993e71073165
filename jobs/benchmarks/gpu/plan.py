"""Which pieces fit into the time, and in which size: every piece leaves enough for the smallest size of those after it.
Knows seconds; runs nothing."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.benchmarks.gpu.pieces import Piece, Size
from jobs.benchmarks.gpu.rates import Rates, assumed_rates, probed_rates
from ray_app.generation.recipes import default_batch_size

Entries = dict[str, dict[str, Any]]
"""What the report has of the pieces so far."""


def rates_of(piece: Piece, entries: Entries) -> Rates:
    """By the family's probe, if it was measured."""
    batch_size = default_batch_size(piece.model_type, "cuda", piece.pixels, piece.pixels)
    probe = entries.get(f"probe_{piece.model_type}", {}).get("figures")
    if probe:
        return probed_rates(probe, piece.model_type, piece.pixels, batch_size)
    return assumed_rates(piece.model_type, piece.pixels, batch_size)


def choose_size(piece: Piece, later: Sequence[Piece], left: float, entries: Entries) -> Size | None:
    """The best size that leaves enough for the others, or else the smallest one; None for a piece without sizes.

    Args:
        later: the pieces after it.
        left: seconds for it and for them.
    """
    rates = rates_of(piece, entries)
    reserved = sum(other.least_seconds(rates_of(other, entries)) for other in later)
    fitting = (size for size in piece.sizes if piece.seconds(size, rates) <= left - reserved)
    return next(fitting, piece.sizes[-1] if piece.sizes else None)


def describe(chosen: Sequence[Piece], seconds: float, is_try: bool) -> str:
    """What would be measured on a GPU that was not probed: a line per piece."""
    left, lines = seconds, []
    for number, piece in enumerate(chosen):
        size = choose_size(piece, chosen[number + 1 :], left, {})
        planned = piece.seconds(size, rates_of(piece, {}))
        mark = "fits" if planned <= left else "left out"
        left -= planned if planned <= left else 0
        command = piece.command(size, Path("figures.json"), is_try)
        lines.append(f"{piece.name:<20} {planned:5.0f} s  {mark:<9} {shown(command, piece)}")
    return "\n".join(lines)


def shown(command: Sequence[str], piece: Piece) -> str:
    """A piece's command as somebody would run it alone."""
    return shlex.join(["python", *command[1:-1], f"{piece.name}.json"])
