"""One PNG of some slots: a row a slot and snapshot, a column a step, prompts beside them; for papers and slides.
Knows Pillow and trajectories; nothing of pages."""

import textwrap
from pathlib import Path
from typing import Any

import pyarrow.compute
from PIL import Image, ImageDraw, ImageFont

from ray_app import pictures
from ray_app.errors import InputRefused
from ray_app.files import whole_file
from ray_app.storage import Output
from ray_app.trajectories import OK, Trajectories, Trajectory

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

MAX_PIXELS = 30_000
"""Of height: more is refused, no viewer shows it."""
GAP, TEXT_WIDTH, FONT_SIZE = 8, 300, 16
INK, QUIET, BAD = "black", "#666666", "#b3261e"


def write(path: str, output: Output, shown: Trajectories, query_ids: list[int], cell: int) -> None:
    """Draw these queries' slots, each image at most `cell` pixels wide.

    Raises:
        Refused: too many slots for one picture, or the file can't be written.
    """
    cell = min(cell, _largest(shown))
    steps = sorted({step for _, step in shown.captures})
    snapshots = list(dict.fromkeys(snapshot for snapshot, _ in shown.captures))
    most = (MAX_PIXELS - 3 * GAP) // (cell + GAP)
    lines: list[tuple[Trajectory, str]] = []
    for one in shown.of(query_ids):
        lines += [(one, snapshot) for snapshot in snapshots]
        if len(lines) > most:
            raise InputRefused(
                f"--contact_sheet {path}: more than {most} rows of {cell} pixels; take fewer with --query_ids or"
                " --limit, or smaller ones with --thumbnails"
            )
    font = ImageFont.load_default(FONT_SIZE)
    top = FONT_SIZE + 2 * GAP
    size = (TEXT_WIDTH + len(steps) * (cell + GAP) + 2 * GAP, top + len(lines) * (cell + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = TEXT_WIDTH + 2 * GAP
    for column, step in enumerate(steps):
        draw.text((left + column * (cell + GAP), GAP), f"step {step}", INK, font)
    for number, (one, snapshot) in enumerate(lines):
        y = top + number * (cell + GAP)
        _describe(draw, font, one, snapshot if len(snapshots) > 1 else "", (GAP, y), cell)
        for column, step in enumerate(steps):
            _show(sheet, draw, font, output, one.images.get((snapshot, step)), left + column * (cell + GAP), y, cell)
    with whole_file(Path(path).expanduser(), "--contact_sheet") as staged:
        sheet.save(staged, "PNG", optimize=True)


def _largest(shown: Trajectories) -> int:
    """The longest side of any image, at least a line of text and its failure."""
    sides = [shown.rows(model_type)[name] for model_type in shown.models for name in ("width", "height")]
    return max(4 * FONT_SIZE, *(pc.max(side).as_py() or 0 for side in sides))


def _describe(
    draw: ImageDraw.ImageDraw, font: Any, one: Trajectory, snapshot: str, place: tuple[int, int], cell: int
) -> None:
    facts = ", ".join(text for text in (f"query {one.slot['query_id']}", one.model, snapshot) if text)
    wide = TEXT_WIDTH // (FONT_SIZE // 2)
    lines = [facts, *textwrap.wrap(one.slot["prompt"] or "", wide)]
    fits = max(1, cell // (FONT_SIZE + 4))
    x, y = place
    for number, line in enumerate(lines[:fits]):
        draw.text((x, y + number * (FONT_SIZE + 4)), _fitting(draw, font, line), QUIET if not number else INK, font)


def _fitting(draw: ImageDraw.ImageDraw, font: Any, line: str) -> str:
    """As much of the line as the column holds."""
    while line and draw.textlength(line, font) > TEXT_WIDTH:
        line = line[:-1]
    return line


def _show(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: Any,
    output: Output,
    row: dict | None,
    x: int,
    y: int,
    cell: int,
) -> None:
    """The image, centred in its cell; or in words why there is none."""
    word = "not there"
    if row is not None and row["status"] == OK:
        try:
            picture = pictures.small(output.read(row["path"]), cell)
            sheet.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
            return
        except OSError:
            word = "unreadable"
    elif row is not None and row["status"] == "failed":
        word = f"failed\n{row['error_type'] or ''}"
    draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=BAD if word.startswith("failed") else QUIET)
    draw.multiline_text((x + GAP, y + GAP), word, BAD if word.startswith("failed") else QUIET, font)
