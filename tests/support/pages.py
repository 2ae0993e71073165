"""The pages that people read: which there are, their code blocks, links and headings.
Knows Markdown as far as these pages use it; nothing of what they say."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
MANUAL = [README, *DOCS]
"""Pages whose every code block is run, or marked with the reason why not."""
PAGES = [*MANUAL, *(ROOT / name for name in ("BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md"))]

FENCE = re.compile(r"^```(\S*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
HEREDOC = re.compile(r"<<'?(\w+)'?$")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str
    """Why no test runs it; empty where one does."""

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The page's blocks, or those in one language, in their order."""
    return [block for block in _blocks(page) if language in (None, block.language)]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    begun: int | None = None
    for number, line in enumerate(lines):
        if begun is None and (fence := FENCE.match(line)):
            begun, language = number, fence[1]
        elif begun is not None and line == "```":
            mark = NOT_RUN.match(lines[begun - 1])
            text = "\n".join(lines[begun + 1 : number])
            yield Block(page, begun + 1, language, text, mark[1] if mark else "")
            begun = None
    assert begun is None, f"{name(page)}:{begun}: the block has no end"


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block; bodies of here-documents and comments are left out."""
    commands: list[list[str]] = []
    lines = iter(block.text.replace("\\\n", " ").splitlines())
    for line in lines:
        if ending := HEREDOC.search(line):
            while next(lines) != ending[1]:
                pass
            line = HEREDOC.sub("", line)
        while _is_open(line):
            line += "\n" + next(lines)
        commands += [words for part in line.split(" && ") if (words := shlex.split(part, comments=True))]
    return commands


def _is_open(line: str) -> bool:
    """Whether a quotation begins in it that a later line ends."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True
    return False


def shown_commands(page: Path, program: str) -> list[list[str]]:
    """The words of all commands of one program on a page, in blocks and in the text, each once; not its name alone."""
    in_text = re.findall(rf"`({program}\b[^`]*)`", prose(page))
    found = [shlex.split(command) for command in in_text if "…" not in command]
    found += [words for block in blocks(page, "bash") for words in shell_commands(block)]
    start = program.split()
    each = map(list, dict.fromkeys(map(tuple, found)))
    return [words for words in each if words[: len(start)] == start and len(words) > len(start)]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)


def links(page: Path) -> list[str]:
    """Targets of the page's links and images."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)\)", text)
