"""The pages' generated parts are the program's own: help texts and columns.

`python -m tests.docs.test_reference` writes them again.
"""

import re
from typing import Any

from ray_app.cli import COMMANDS
from ray_app.index.schema import COLUMNS
from tests.conftest import read_helps
from tests.support.pages import ROOT

COLUMNS_PAGE = ROOT / "docs" / "index-and-queries.md"
COMMANDS_PAGE = ROOT / "docs" / "command-reference.md"


def columns() -> str:
    lines = [f"| `{name}` | {column.type} | {column.meaning} |" for name, column in COLUMNS.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *lines, "| `model` | partition | sdxl or flux |"])


def help_text(printed: str) -> str:
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return f"```text\n{lines}\n```"


def put(text: str, name: str, part: str) -> str:
    """The page's text with one generated part replaced."""
    block = f"<!-- {name} -->\n\n{part}\n\n<!-- end -->"
    text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _: block, text, flags=re.DOTALL)
    assert count == 1, f"{count} parts {name!r}"
    return text


def generated(helps: dict[str, Any]) -> dict[Any, str]:
    """Each page that has generated parts, with these as the program makes them."""
    reference = COMMANDS_PAGE.read_text()
    for command in COMMANDS:
        reference = put(reference, f"help: {command}", help_text(helps[command]))
    return {COMMANDS_PAGE: reference, COLUMNS_PAGE: put(COLUMNS_PAGE.read_text(), "columns", columns())}


def test_generated_parts_are_current(helps):
    for page, text in generated(helps).items():
        assert page.read_text() == text, f"{page}: python -m tests.docs.test_reference writes it again"


def test_every_command_has_a_section_and_no_other_has():
    assert re.findall(r"^## (.+)$", COMMANDS_PAGE.read_text(), flags=re.MULTILINE) == list(
        re.findall(r"^<!-- help: (\w+) -->$", COMMANDS_PAGE.read_text(), flags=re.MULTILINE)
    )
    assert set(re.findall(r"^<!-- help: (\w+) -->$", COMMANDS_PAGE.read_text(), flags=re.MULTILINE)) == set(COMMANDS)


if __name__ == "__main__":
    for page, text in generated(read_helps()).items():
        page.write_text(text)
