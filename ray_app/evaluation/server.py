"""Files for and from an evaluation server: rankings as CIRCO's server takes them, and the scores it gives back.
Knows their formats; nothing of how rankings are made.

A submission is a JSON object, {query id: [50 image ids, best first]}; ids that are numbers are numbers in it. Scores
are a CSV with the columns file, metric and value (in per cent); `file` is the name of a submission.
"""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ray_app.errors import InputRefused
from ray_app.evaluation.gallery_vectors import Gallery
from ray_app.evaluation.queries import ScoredQuery

FIELDS = ("file", "metric", "value")


def submission(queries: Sequence[ScoredQuery], gallery: Gallery, best: np.ndarray) -> bytes:
    """A ranking as the server takes it.

    Args:
        best: positions in the gallery, best first: (queries, 50).
    """
    names = [int(name) if name.isdecimal() else name for name in gallery.names]
    rankings = {str(query.query_id): [names[i] for i in row] for query, row in zip(queries, best.tolist(), strict=True)}
    return json.dumps(rankings).encode()


class Result(NamedTuple):
    """A line of the server's scores; `file` is the name of a submission, `where` names the line in messages."""

    where: str
    file: str
    metric: str
    value: float


def read_results(path: str) -> list[Result]:
    """The scores, in the order of the file.

    Raises:
        Refused: a file that can't be read or lacks a column, or a value that is not a number.
    """
    found: list[Result] = []
    try:
        with open(Path(path).expanduser(), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in FIELDS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputRefused(
                    f"--results {path}: no column {missing[0]!r}; it needs file,metric,value", flag="results"
                )
            for line in reader:
                name, metric, value = (str(line[field] or "").strip() for field in FIELDS)
                where = f"--results {path}: line {reader.line_num}"
                found.append(Result(where, name, metric, _number(value, where)))
    except OSError as error:
        raise InputRefused(f"--results {path}: can't be read: {error.strerror}", flag="results") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputRefused(f"--results {path}: not a CSV file: {error}", flag="results") from None
    return found


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputRefused(f"{where}: value {text!r} is not a number", flag="results")
    return number
