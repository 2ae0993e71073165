"""`python -m jobs.training.demo_scores`: run the demo, record its scores in docs/, and plot them for README.
Knows what the scores depend on, so that a test can tell whether the recorded ones are of the shipped files."""

import csv
import dataclasses
import hashlib
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from actors import tiny
from jobs.illustrations import record
from ray_app import demo
from ray_app.cli import run_module
from ray_app.errors import OK
from ray_app.evaluation import answer
from ray_app.generation.options import Demo
from ray_app.output import layout

TABLE = record.ROOT / "docs" / "demo-scores.csv"
PLOT = record.FOLDER / "scores.png"
PLOT_SOURCES = ("docs/demo-scores.csv", "ray_app/evaluation/answer.py")
NUMBERS = ("value", "low", "high", "p_holm", "weight")
COLUMNS = ("model", "snapshot", "step", "method", "control", "metric", "compared_with", "n", *NUMBERS)
DIGITS = 2


@dataclasses.dataclass(frozen=True)
class DemoScores(Demo):
    """Run the demo, write its scores to docs/demo-scores.csv, and plot these in .github/scores.png.

    Images and vectors that an earlier demo in the same folder made are taken as they are.
    """


def demo_scores(options: DemoScores) -> int:
    """Run it; the exit code."""
    code = demo.demo(options)
    if code != OK:
        return code
    rows = pq.read_table(Path(options.output_base_path) / layout.EVALUATION_TABLE).to_pylist()
    text = to_csv([row for row in rows if is_recorded(row)])
    TABLE.write_text(text, encoding="utf-8")
    PLOT.write_bytes(plot_of(text))
    record.write(PLOT.name, PLOT_SOURCES)
    print(f"\nscores  {TABLE}\nplot    {PLOT}")
    return OK


def is_recorded(row: dict[str, Any]) -> bool:
    """Whether table or plot need it."""
    return (
        row["metric"] == answer.METRIC and row["control"] == "none" and row["compared_with"] in (None, answer.LAST_STEP)
    )


def inputs() -> str:
    """A hash of what the scores depend on: the tiny models, the queries and the gallery."""
    revisions = [tiny.revision(name) for name in (*tiny.model_types(), tiny.CLIP)]
    files = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (demo.QUERIES, demo.IMAGES)]
    return hashlib.sha256(" ".join([*revisions, *files]).encode()).hexdigest()[:16]


def to_csv(rows: list[dict[str, Any]]) -> str:
    """A first line with the inputs' hash, then a header and the rows."""
    buffer = io.StringIO()
    buffer.write(f"# inputs {inputs()}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [row[name] for name in COLUMNS]
        writer.writerow([round(cell, DIGITS) if isinstance(cell, float) else cell for cell in cells])
    return buffer.getvalue()


def from_csv(text: str) -> list[dict[str, Any]]:
    """The rows again, with null for empty cells."""
    rows = []
    for row in csv.DictReader(text.splitlines()[1:]):
        numbers = {name: float(row[name]) if row[name] else None for name in NUMBERS}
        step = int(row["step"]) if row["step"] else None
        rows.append({**row, **numbers, "n": int(row["n"]), "step": step, "compared_with": row["compared_with"] or None})
    return rows


def plot_of(text: str) -> bytes:
    """The plot of a recorded table; the file keeps the table's hash."""
    return answer.plot(answer.Scores(from_csv(text)), f"scores {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    sys.exit(run_module("jobs.training.demo_scores", DemoScores, demo_scores, resumes=True))
