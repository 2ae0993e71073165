"""Versions that are allowed, tried and documented are the same: neither bounds nor documentation drift."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {needed.name: needed for needed in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    extra: [needed for needed in map(Requirement, needs) if needed.name != PROJECT["name"]]
    for extra, needs in PROJECT["optional-dependencies"].items()
}
INSTALLED = NEEDED | {needed.name: needed for needed in EXTRAS["plot"]}
LOWEST = dict(
    re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / ".ci/constraints-lowest.txt").read_text(), flags=re.MULTILINE)
)
UNTRIED = {"torch": "2.11.0"}
"""Lower bounds that were not tried: what is below the version in the constraints is allowed all the same."""


def bound(needed: Requirement, operator: str) -> str:
    (version,) = [part.version for part in needed.specifier if part.operator == operator]
    return version


def test_lower_bounds_are_the_versions_that_were_tried():
    assert {name: bound(needed, ">=") for name, needed in INSTALLED.items()} == LOWEST | UNTRIED


def test_every_dependency_has_an_upper_bound_above_what_is_tried():
    for name, needed in INSTALLED.items():
        assert Version(bound(needed, "<")) > Version(LOWEST[name])
        assert needed.specifier.contains(LOWEST[name]), name


def test_extras_allow_the_same_versions_as_each_other():
    for extra, needs in EXTRAS.items():
        for needed in needs:
            if needed.name in INSTALLED:
                assert needed.specifier == INSTALLED[needed.name].specifier, (extra, needed.name)


def test_the_documentation_tells_the_bounds():
    page = (ROOT / "docs/getting-started.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z0-9-]+) \| (\d[\d.]*, below \d[\d.]*) \|", page, flags=re.MULTILINE))
    assert rows == {name: f"{bound(needed, '>=')}, below {bound(needed, '<')}" for name, needed in INSTALLED.items()}


def test_python_is_what_pages_and_classifiers_say():
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {lowest}" in PROJECT["classifiers"]
    for page in ("README.md", "docs/getting-started.md"):
        assert f"Python {lowest} or newer" in (ROOT / page).read_text(), page
