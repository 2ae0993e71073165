"""Links between the pages hold, on the disk and in the site: files exist, headings too, every page is reached."""

import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from tests.support.pages import DOCS, PAGES, README, ROOT, headings, links, name, prose


def github_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_anchor(heading: str) -> str:
    """As Python-Markdown's `toc` makes it."""
    text = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(page: Path) -> set[str]:
    """Those that are the same on GitHub and in the site."""
    return {github_anchor(heading) for heading in headings(page)} & {site_anchor(heading) for heading in headings(page)}


def broken(page: Path) -> list[str]:
    found = []
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or not target.is_relative_to(ROOT):
            found.append(f"{name(page)}: {link}: no such file")
        elif anchor and anchor not in anchors(target):
            found.append(f"{name(page)}: {link}: no such heading, or one that GitHub and the site name differently")
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    assert not broken(page)


def test_a_link_to_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.test_links.ROOT", tmp_path)
    monkeypatch.setattr("tests.support.pages.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("## Real heading\n")
    page = tmp_path / "a.md"
    page.write_text("[a](b.md#real-heading) [b](b.md#another) [c](c.md) [d](https://example.org/x)\n")
    assert [line.split(": ")[1] for line in broken(page)] == ["b.md#another", "c.md"]


def test_the_readme_links_to_every_page_of_docs():
    linked = {link.partition("#")[0] for link in links(README)}
    assert {name(page) for page in DOCS} <= linked


def test_the_site_has_every_page_of_docs_in_its_menu():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = re.findall(r"[\w-]+\.md", str(config["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.name for page in PAGES if page != README} | {"index.md"}


def test_every_page_begins_with_its_only_title():
    for page in PAGES:
        assert page.read_text().startswith("# "), name(page)
        assert len(re.findall(r"^# ", prose(page), flags=re.MULTILINE)) == 1, name(page)
