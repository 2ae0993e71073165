"""`python -m jobs.benchmarks.gpu`: fills the GPU tables of BENCHMARKS.md in a given time, the most valuable first.
Decides which pieces fit; each is a command of its own, and the report is written after each."""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.benchmarks.gpu import plan, report
from jobs.benchmarks.gpu.pieces import PIECES, Piece
from jobs.benchmarks.gpu.run import run
from jobs.benchmarks.machine import describe
from ray_app.arguments import Options, Seconds
from ray_app.cli import run_module
from ray_app.errors import OK, PROBLEMS, InputRefused
from ray_app.files import check_place, whole_file
from ray_app.machine import query_gpus, versions
from ray_app.suggestions import suggest

TRY_SECONDS = 300.0
"""The limit of a piece with --try: the machine may be small and busy."""


@dataclasses.dataclass(frozen=True)
class Measurement(Options):
    """Measure everything that BENCHMARKS.md says of a GPU, in the given time, the most valuable first.

    Checks (rerun, verify, equal bytes, similarity to CPUs, resuming), memory and loading, proxyqueue beside scripts
    and the bare model at 512 and 1024 px, the effect of each optimization. Each piece is a command with a limit of
    time: one that fails or does not fit costs no other, and the report names its command. Nothing else should run.

    Example: python -m jobs.benchmarks.gpu --minutes 30

    Exit codes: 0 all that was begun is measured, 1 a piece failed, 2 refused, 130 interrupted.
    """

    minutes: Annotated[float, Seconds(limit=24 * 60, meaning=" and below 1,440")] = 30.0
    """Time for all of it."""
    pieces: tuple[str, ...] = ()
    """Names of the pieces to measure, such as those that an earlier report says were left out; default all."""
    dry_run: bool = False
    """Print the pieces with their seconds and commands, and measure nothing."""
    try_: Annotated[bool, tyro.conf.arg(name="try")] = False
    """Run a piece of each kind with the tiny models on CPUs, to try this command; its figures mean nothing."""
    output: str = "gpu.json"
    """File for everything that was measured, as JSON; the tables are written next to it, as .md."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        names = [piece.name for piece in PIECES]
        for name in self.pieces:
            if name not in names:
                raise InputRefused(f"--pieces {name}: no such piece{suggest(name, names)}")
        if Path(self.output).suffix == ".md":
            raise InputRefused(f"--output {self.output}: is the name of the tables; name a .json file")


def measure_gpu(options: Measurement) -> int:
    """Measure and report; the exit code.

    Raises:
        Refused: bad options, or no GPU.
    """
    check_place(Path(options.output), "--output")
    chosen = [piece for piece in PIECES if not options.pieces or piece.name in options.pieces]
    if options.dry_run:
        print(plan.describe(chosen, 60 * options.minutes, options.try_))
        return OK
    if not options.try_ and not query_gpus("name"):
        raise InputRefused("this machine has no GPU that nvidia-smi lists; --try runs with the tiny models on CPUs")
    measurement = _Measurement(options)
    for number, piece in enumerate(chosen):
        measurement.take(piece, chosen[number + 1 :])
    print(f"tables           {measurement.tables}")
    print(f"all figures      {options.output}")
    return PROBLEMS if measurement.has_failed else OK


class _Measurement:
    """Runs pieces while there is time, and keeps what they found."""

    def __init__(self, options: Measurement):
        self.options, self.tables = options, Path(options.output).with_suffix(".md")
        self._until = time.monotonic() + 60 * options.minutes
        self._report: dict[str, Any] = {
            "machine": describe(),
            "versions": versions(),
            "driver": next((driver for (driver,) in query_gpus("driver_version")), None),
            "command": sys.argv[1:],
            "is_try": options.try_,
            "pieces": {},
        }

    @property
    def has_failed(self) -> bool:
        """Whether a piece that was begun found nothing, or what should not be."""
        return any(entry["state"] in ("failed", "out of time") for entry in self._report["pieces"].values())

    def take(self, piece: Piece, later: Sequence[Piece]) -> None:
        """Run a piece, or leave it out if its time is not left; its entry goes into the report."""
        entries = self._report["pieces"]
        left = self._until - time.monotonic()
        size = plan.choose_size(piece, later, left, entries)
        planned = piece.seconds(size, plan.rates_of(piece, entries))
        with tempfile.TemporaryDirectory(prefix="proxyqueue_gpu_") as folder:
            figures = Path(folder) / "figures.json"
            command = piece.command(size, figures, self.options.try_)
            entry = {"planned_seconds": round(planned), "command": plan.shown(command, piece)}
            if piece.is_tried if self.options.try_ else planned <= left:
                limit = TRY_SECONDS if self.options.try_ else 2 * planned + 60
                print(f"{piece.name:<20} begins, {planned:.0f} s planned", file=sys.stderr, flush=True)
                entry |= _run(command, min(limit, max(1.0, left)), figures)
            else:
                entry |= {"state": "left out", "seconds": None, "figures": None}
        print(f"{piece.name:<20} {entry['state']}", file=sys.stderr, flush=True)
        entries[piece.name] = entry
        self._write()

    def _write(self) -> None:
        for path, text in (
            (Path(self.options.output), json.dumps(self._report, indent=1) + "\n"),
            (self.tables, report.markdown(self._report)),
        ):
            with whole_file(path, "--output") as staged:
                staged.write_text(text)


def _run(command: Sequence[str], seconds: float, figures: Path) -> dict[str, Any]:
    """How a piece ended, and what it found."""
    ended = run(command, seconds, figures.with_name("said.txt"))
    found = _read(figures)
    state = "out of time" if ended.code is None else "done" if ended.code == 0 and found else "failed"
    said = {} if state == "done" else {"said": ended.said}
    return {"state": state, "seconds": round(ended.seconds, 1), "figures": found, **said}


def _read(figures: Path) -> dict[str, Any] | None:
    """What a piece wrote, also one that was ended; None if it wrote nothing."""
    try:
        return json.loads(figures.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.gpu", Measurement, measure_gpu))
