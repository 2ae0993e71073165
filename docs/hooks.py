"""MkDocs hooks: pages and images outside docs/ are part of the site, and links between them hold.
Knows where a file of the repository lies in the site; nothing of what pages say."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HOME = "README.md"
PAGES = (HOME, "BENCHMARKS.md", "CONTRIBUTING.md", "CHANGELOG.md")
FILES = (".github/*.png", ".github/*.svg", "cluster.yaml", "jobs/rayjob.yaml", "LICENSE", "CITATION.cff")
"""Of the repository, which pages link to or show."""

LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
"""The path of a relative link, without its anchor."""


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path == HOME:
        return "index.md"
    return path.removeprefix("docs/").replace(".github/", "images/")


def repository_path(site: str) -> str:
    """Which file of the repository a page of the site is."""
    if site == "index.md":
        return HOME
    return site if site in PAGES else f"docs/{site}"


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    outside = [ROOT / page for page in PAGES]
    outside += [file for pattern in FILES for file in sorted(ROOT.glob(pattern))]
    for file in outside:
        place = site_path(file.relative_to(ROOT).as_posix())
        files.append(File.generated(config, place, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = page.file.src_uri
    folder = posixpath.dirname(repository_path(here))

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        return posixpath.relpath(site_path(target), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)
