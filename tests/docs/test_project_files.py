"""What stands around the code holds together: README's length, CI, Makefile, hooks, changelog, citation."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from tests.conftest import ROOT
from tests.support.pages import README

DEVELOPING = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CHORES = re.findall(r"^([a-z-]+): ## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")


def make(*arguments: str) -> str:
    result = subprocess.run(["make", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 250


def test_ci_installs_as_the_readme_says():
    """.ci/run takes the one line of this form from README.md."""
    pattern = re.search(r"grep -E '(.+?)' README\.md", (ROOT / ".ci" / "run").read_text())
    assert pattern
    assert len(re.findall(pattern[1], README.read_text(), flags=re.MULTILINE)) == 1


def test_ci_is_a_script_that_bash_accepts():
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], timeout=30).returncode == 0


@needs_make
@pytest.mark.parametrize("chore", CHORES)
def test_chores_are_ones_that_make_knows(chore):
    assert make("--dry-run", chore)


@needs_make
def test_release_notes_are_one_section_of_the_changelog():
    notes = make("--silent", "release-notes", "VERSION=0.1.0")
    assert notes.startswith("## [0.1.0] - ")
    assert CHANGELOG.endswith(notes) or notes in CHANGELOG
    assert "[Unreleased]" in make("--silent", "release-notes")
    assert notes.count("\n## ") == 0


def test_contributing_names_every_chore():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert {chore for chore in CHORES if f"`make {chore}" not in text} == {"help"}


def test_the_changelog_has_versions_and_kinds_of_changes():
    versions = re.findall(r"^## (.+)$", CHANGELOG, flags=re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_is_of_a_released_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in CHANGELOG


def test_hooks_have_the_versions_of_the_extra_dev():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (ruff,) = [repo for repo in config["repos"] if repo["repo"].endswith("ruff-pre-commit")]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in DEVELOPING
