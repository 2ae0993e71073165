"""Tables and lists of lines as people read them on a terminal.
Knows widths; nothing of what the lines say."""

from collections.abc import Collection, Iterable, Iterator, Sequence

GAP = "  "


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows of cells, including the header, as lines whose columns are as wide as their widest cell.

    Args:
        right: the columns that are aligned to the right, such as numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.rjust(width) if column in right else cell.ljust(width))
        lines.append(GAP.join(cells).rstrip())
    return lines


def first(lines: Iterable[str], most: int, rest: str) -> Iterator[str]:
    """The first `most` lines; if there are more, a last one that says how many, followed by `rest`."""
    left_out = 0
    for number, line in enumerate(lines):
        if number < most:
            yield line
        else:
            left_out += 1
    if left_out:
        yield f"and {left_out:,} more{rest}"
