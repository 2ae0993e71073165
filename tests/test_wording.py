"""The project's prose is plain technical English: no tracked file has a phrase of tests/data/phrases.txt.
Docstrings, comments, messages and names of tests count as well as pages."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PHRASES = ROOT / "tests" / "data" / "phrases.txt"
PROSE = {".py", ".md", ".toml", ".yaml", ".yml", ".jinja", ".js", ".css", ".cff", ".html"}
QUOTES_PHRASES = {"CHANGELOG.md", "tests/test_wording.py", "jobs/training/captions.py"}
"""The history, this file, and the words of training prompts ("a picture of {}")."""
TESTS_NAME = re.compile(r"(?<=def test)_\w+")
JOINTS = re.compile(r"""["']\n[ ]*[fr]?["']|\n[ ]*(?:#|-)? ?""")
"""Where a sentence continues on the next line: string literals side by side, comments, wrapped lines."""


def phrases() -> dict[re.Pattern[str], str]:
    """What to say instead of each phrase."""
    found = {}
    for line in PHRASES.read_text().splitlines():
        if line and line[0] not in "#[":
            pattern, _, instead = line.partition("\t")
            found[re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)] = instead
    return found


def prose(text: str) -> str:
    """The text with sentences in one piece, and with every line where it was."""
    text = TESTS_NAME.sub(lambda name: name[0].replace("_", " "), text)
    return JOINTS.sub("\n", text)


def findings(name: str, text: str, instead_of: dict[re.Pattern[str], str]) -> Iterator[str]:
    """A line for each phrase in a file's text: where it is, and what to say instead."""
    text = prose(text)
    for pattern, instead in instead_of.items():
        for match in pattern.finditer(text):
            line, phrase = text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())
            yield f"{name}:{line}: {phrase!r}; say: {instead}"


def tracked() -> list[str]:
    """The names of all tracked files with prose."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if Path(name).suffix in PROSE and name not in QUOTES_PHRASES]


def test_no_tracked_file_has_a_phrase_to_avoid():
    instead_of = phrases()
    found = [line for name in tracked() for line in findings(name, (ROOT / name).read_text(), instead_of)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One row a slot.", "a.md:1: 'One row a slot'; say: per"),
        ("# costs 5 GB\n# an actor", "a.md:1: 'GB an actor'; say: per"),
        ("the index\nsays what is\nthere", "a.md:2: 'what is there'; say: what exists"),
        (
            'f"interrupted; the same command"\n    f" goes on from here"',
            "a.md:1: 'the same command goes on'; say: rerun",
        ),
        ("def test_a_run_goes_on_from_its_rows():", "a.md:1: 'goes on from'; say: resumes from"),
        ("the bytes of so many files", "a.md:1: 'of so many'; say: of N in total"),
        ("The verb `clean`", "a.md:1: 'The verb'; say: the command"),
        ("Pictures are drawn.", "a.md:1: 'Pictures'; say: image"),
        ("the steps that are asked for", "a.md:1: 'asked for'; say: requests; requested"),
    ],
)
def test_each_habit_is_found_also_across_lines(text, found):
    assert any(line.startswith(found) for line in findings("a.md", text, phrases()))


@pytest.mark.parametrize(
    "text", ["one row per slot", "a PNG of a slot", "each with a seed", "rerun the same command to resume", "a set"]
)
def test_plain_sentences_pass(text):
    assert not list(findings("a.md", text, phrases()))
