"""One PNG of some slots: one row per slot and snapshot, one column per step, with prompts; for papers and slides.
Knows Pillow and trajectories; nothing of pages."""

import textwrap
from pathlib import Path
from typing import Any

import pyarrow.compute
from PIL import Image, ImageDraw, ImageFont

from ray_app.errors import InputRefused
from ray_app.files import whole_file
from ray_app.gallery import thumbnails
from ray_app.index.trajectories import OK, Trajectories, Trajectory
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

MAX_PIXELS = 30_000
"""Maximum height: many viewers can't show more."""
GAP, TEXT_WIDTH, FONT_SIZE = 8, 300, 16
INK, QUIET, BAD = "black", "#666666", "#b3261e"


def write(path: str, output: Output, shown: Trajectories, query_ids: list[int], cell: int) -> None:
    """Lay out these queries' slots, each image at most `cell` pixels wide.

    Raises:
        Refused: too many slots for one image, or the file can't be written.
    """
    cell = min(cell, _largest(shown))
    steps = sorted({step for _, step in shown.captures})
    snapshots = list(dict.fromkeys(snapshot for snapshot, _ in shown.captures))
    max_lines = (MAX_PIXELS - 3 * GAP) // (cell + GAP)
    lines: list[tuple[Trajectory, str]] = []
    for trajectory in shown.of(query_ids):
        lines += [(trajectory, snapshot) for snapshot in snapshots]
        if len(lines) > max_lines:
            raise InputRefused(
                f"--contact_sheet {path}: more than {max_lines} rows of {cell} pixels; take fewer with --query_ids or"
                " --limit, or smaller images with --thumbnails"
            )
    font = ImageFont.load_default(FONT_SIZE)
    top = FONT_SIZE + 2 * GAP
    left = TEXT_WIDTH + 2 * GAP
    width = left + len(steps) * (cell + GAP)
    height = top + len(lines) * (cell + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, step in enumerate(steps):
        draw.text((left + column * (cell + GAP), GAP), f"step {step}", INK, font)
    for number, (trajectory, snapshot) in enumerate(lines):
        y = top + number * (cell + GAP)
        shown_snapshot = snapshot if len(snapshots) > 1 else ""
        _describe(draw, font, trajectory, shown_snapshot, (GAP, y), cell)
        for column, step in enumerate(steps):
            row = trajectory.images.get((snapshot, step))
            _show(sheet, draw, font, output, row, left + column * (cell + GAP), y, cell)
    with whole_file(Path(path).expanduser(), "--contact_sheet") as staged:
        sheet.save(staged, "PNG", optimize=True)


def _largest(shown: Trajectories) -> int:
    """The longest side of any image, and at least enough for the text of a failure."""
    longest = 4 * FONT_SIZE
    for model_type in shown.models:
        rows = shown.rows(model_type)
        longest = max(longest, *(pc.max(rows[name]).as_py() or 0 for name in ("width", "height")))
    return longest


def _describe(
    draw: ImageDraw.ImageDraw, font: Any, trajectory: Trajectory, snapshot: str, place: tuple[int, int], cell: int
) -> None:
    facts = ", ".join(text for text in (f"query {trajectory.slot['query_id']}", trajectory.model, snapshot) if text)
    characters = TEXT_WIDTH // (FONT_SIZE // 2)
    lines = [facts, *textwrap.wrap(trajectory.slot["prompt"] or "", characters)]
    line_height = FONT_SIZE + 4
    max_lines = max(1, cell // line_height)
    x, y = place
    for number, line in enumerate(lines[:max_lines]):
        colour = QUIET if number == 0 else INK
        draw.text((x, y + number * line_height), _fitting(draw, font, line), colour, font)


def _fitting(draw: ImageDraw.ImageDraw, font: Any, line: str) -> str:
    """As much of the line as fits into the column."""
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
    """Paste the image into the middle of its cell, or write why there is none."""
    reason = "missing"
    if row is not None and row["status"] == OK:
        try:
            image = thumbnails.small(output.read(row["path"]), cell)
            sheet.paste(image, (x + (cell - image.width) // 2, y + (cell - image.height) // 2))
            return
        except OSError:
            reason = "unreadable"
    elif row is not None and row["status"] == "failed":
        reason = f"failed\n{row['error_type'] or ''}"
    colour = BAD if reason.startswith("failed") else QUIET
    draw.rectangle((x, y, x + cell - 1, y + cell - 1), outline=colour)
    draw.multiline_text((x + GAP, y + GAP), reason, colour, font)
