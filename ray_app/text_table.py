"""Tables and lists of lines as people read them on a terminal.
Knows widths; nothing of what the lines say."""

from collections.abc import Collection, Iterable, Iterator, Sequence

GAP = "  "


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows of cells, the head among them, as lines whose columns are as wide as their widest cell.

    Args:
        right: the columns that stand to the right, numbers say.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def first(lines: Iterable[str], most: int, rest: str) -> Iterator[str]:
    """The first `most` lines; if there are more, a last one that says how many, with `rest` behind the number."""
    left_out = 0
    for number, line in enumerate(lines):
        if number < most:
            yield line
        else:
            left_out += 1
    if left_out:
        yield f"and {left_out:,} more{rest}"
