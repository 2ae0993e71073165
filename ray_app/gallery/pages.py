"""The command `gallery`: static pages of an output's slots, with thumbnails of the images; or one contact sheet.
Knows what is shown and where it is written; how it looks is in gallery.html.jinja, gallery.css and gallery.js."""

import dataclasses
import json
import os
import posixpath
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray_app import page_templates
from ray_app.annotations import circo
from ray_app.errors import OK as EXIT_OK
from ray_app.errors import InputRefused, one_line
from ray_app.files import whole_file
from ray_app.gallery import contact_sheet, thumbnails
from ray_app.gallery.options import Gallery
from ray_app.index import runs
from ray_app.index.trajectories import FAILED, MISSING, OK, Trajectories, Trajectory
from ray_app.messages import LOG, summarize
from ray_app.output import layout, remote
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import Checked

QUERIES_A_PAGE = 50
ASSETS = ("gallery.css", "gallery.js")
HERE = Path(__file__).parent

Captions = dict[int, tuple[str, str]]


def gallery(options: Gallery) -> int:
    """Write the pages, or the sheet; the exit code.

    Raises:
        Refused: the output has no such images, an unknown query, a folder that can't be written.
    """
    output = open_output(options.output_base_path)
    shown = Trajectories(output, layout.model_types(options.model_type))
    query_ids = _chosen(shown.query_ids, options)
    if options.contact_sheet is not None:
        contact_sheet.write(options.contact_sheet, output, shown, query_ids, options.thumbnails or 256)
        summarize(f"contact sheet    {options.contact_sheet}")
        return EXIT_OK
    pages = _Pages(output, options, shown, query_ids)
    try:
        pages.write()
    except OSError as error:
        raise InputRefused(f"{error.filename or pages.folder}: can't be written: {error.strerror or error}") from error
    return EXIT_OK


def _chosen(known_ids: list[int], options: Gallery) -> list[int]:
    requested = set(options.query_ids) or set(known_ids)
    unknown = requested - set(known_ids)
    if unknown:
        raise InputRefused(f"--query_ids {min(unknown)}: no image of this query in the index", flag="query_ids")
    chosen = [query for query in known_ids if query in requested]
    return chosen[: options.limit]


@dataclasses.dataclass
class _Section:
    """A query as the page shows it."""

    query_id: int
    reference: str
    caption: str
    concept: str
    slots: list[dict[str, Any]]


class _Pages:
    """Everything in the gallery's folder."""

    def __init__(self, output: Output, options: Gallery, shown: Trajectories, query_ids: list[int]):
        self.output, self.options, self.shown, self.query_ids = output, options, shown, query_ids
        is_remote = remote.is_remote(output.url)
        if is_remote and (options.gallery_path is None or not options.thumbnails):
            raise InputRefused(
                "--gallery_path: name a folder of this machine, with --thumbnails, for a remote output",
                flag="gallery_path",
            )
        named = options.gallery_path or output.path(layout.GALLERY)
        self.folder = Path(named).expanduser().absolute()
        self.to_output = None if is_remote else Path(os.path.relpath(output.url, self.folder)).as_posix()
        self.captions = _captions(options, output)
        self.unreadable: dict[str, str] = {}  # why an existing image can't be decoded, by its path
        self.chunks = [query_ids[i : i + QUERIES_A_PAGE] for i in range(0, len(query_ids), QUERIES_A_PAGE)]

    def write(self) -> None:
        """Write the thumbnails, then the pages that show them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        new_thumbnails = self._write_thumbnails() if self.options.thumbnails else 0
        template = page_templates.load(HERE / "gallery.html.jinja")
        search_entries: list[tuple[int, int, str]] = []
        for number, chunk in enumerate(self.chunks, 1):
            sections = [self._section(query_id) for query_id in chunk]
            search_entries += [(section.query_id, number, _filter_text(section)) for section in sections]
            page = template.render(sections=sections, number=number, **self._constants())
            self._replace(layout.gallery_page(number), page)
        for name in ASSETS:
            self._replace(name, (HERE / name).read_text())
        self._replace("queries.js", f"window.QUERIES = {json.dumps(search_entries, ensure_ascii=True)};\n")
        self._remove_other_pages()
        slots = sum(1 for _ in self.shown.of(self.query_ids))
        pages = "1 page" if len(self.chunks) == 1 else f"{len(self.chunks):,} pages"
        summarize(f"gallery          {len(self.query_ids):,} queries, {slots:,} slots, {pages}")
        if self.options.thumbnails:
            summarize(f"thumbnails       {new_thumbnails:,} new")
        summarize(f"open             {self.folder / layout.gallery_page(1)}")

    def _constants(self) -> dict[str, Any]:
        snapshots = list(dict.fromkeys(snapshot for snapshot, _ in self.shown.captures))
        name = Path(self.output.url).name
        pages = [layout.gallery_page(number) for number in range(1, len(self.chunks) + 1)]
        return {
            "title": name, "snapshots": snapshots, "captures": self.shown.captures, "pages": pages,
            "models": self.shown.models, "queries": len(self.query_ids), "size": self.options.thumbnails or 256,
        }  # fmt: skip

    def _section(self, query_id: int) -> _Section:
        trajectories = list(self.shown.of([query_id]))
        reference = trajectories[0].slot["reference_img_id"]
        caption, concept = self.captions.get(query_id, ("", ""))
        slots = [self._slot(trajectory) for trajectory in trajectories]
        return _Section(query_id, reference, caption, concept, slots)

    def _slot(self, trajectory: Trajectory) -> dict[str, Any]:
        cells = []
        for snapshot, step in self.shown.captures:
            cell = {"snapshot": snapshot, "step": step, **self._cell(trajectory.images.get((snapshot, step)))}
            cells.append(cell)
        errors = dict.fromkeys(f"{cell['error']}: {cell['message']}" for cell in cells if cell.get("error"))
        return {"model": trajectory.model, **trajectory.slot, "cells": cells, "errors": list(errors)}

    def _cell(self, row: dict[str, Any] | None) -> dict[str, Any]:
        """What the page shows of a slot at one capture; `row` is None where the index has no such image."""
        if row is None:
            return {"status": MISSING}
        path = row["path"]
        if path in self.unreadable:
            return {"status": FAILED, "error": "Unreadable", "message": self.unreadable[path]}
        if row["status"] == OK:
            size = {"width": row["width"], "height": row["height"]}
            return {"status": OK, "source": self._source(path), "full": self._full(path), **size}
        return {"status": row["status"], "error": row["error_type"] or "", "message": row["error_message"] or ""}

    def _source(self, path: str) -> str:
        """The URL of what the page shows of an image, relative to the page."""
        return urllib.parse.quote(layout.thumbnail(path)) if self.options.thumbnails else self._full(path)

    def _full(self, path: str) -> str:
        """The URL of the image itself, relative to the page; of a remote output that of its thumbnail."""
        if self.to_output is None:
            return urllib.parse.quote(layout.thumbnail(path))
        return urllib.parse.quote(posixpath.join(self.to_output, path))

    def _write_thumbnails(self) -> int:
        progress = Checked(sum(1 for _ in self._images()), "made small")
        written = 0
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            try:
                for chunk in self.chunks:
                    rows = list(self._images(chunk))
                    for is_new in pool.map(self._write_thumbnail, rows):
                        written += is_new
                        progress.add(1)
            finally:
                progress.close()
        return written

    def _images(self, query_ids: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        for trajectory in self.shown.of(self.query_ids if query_ids is None else query_ids):
            yield from (row for row in trajectory.images.values() if row["status"] == OK)

    def _write_thumbnail(self, row: dict[str, Any]) -> bool:
        """Write an image's thumbnail, unless one of the requested size exists that is newer; whether it was written."""
        path = self.folder / layout.thumbnail(row["path"])
        size = self.options.thumbnails
        longest = min(size, max(row["width"] or 0, row["height"] or 0) or size)
        if _is_current(path, longest, row["created_at"].timestamp()):
            return False
        try:
            thumbnail = thumbnails.small(self.output.read(row["path"]), size)
        except OSError as error:  # the page says so
            self.unreadable[row["path"]] = one_line(error)
            LOG.warning(f"{self.output.display_path(row['path'])}: can't be shown: {one_line(error)}")
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_file(path, thumbnails.to_jpeg(thumbnail))
        return True

    def _replace(self, name: str, text: str) -> None:
        _write_file(self.folder / name, text.encode())

    def _remove_other_pages(self) -> None:
        """Remove the pages of an earlier gallery that had more."""
        current = {layout.gallery_page(number) for number in range(1, len(self.chunks) + 1)}
        for path in self.folder.glob("page*.html"):
            if layout.is_gallery_file(path.name) and path.name not in current:
                path.unlink()


def _captions(options: Gallery, output: Output) -> Captions:
    """By query id, from the annotations; without them the pages have prompts only."""
    if options.json_file is not None:
        return circo.captions(options.json_file)
    for record in reversed(runs.read_all(output)):
        path = (record.get("options") or {}).get("json_file")
        try:
            if isinstance(path, str):
                return circo.captions(path)
        except InputRefused:
            continue
    LOG.warning("no annotations found: pages without captions; name them with --json_file")
    return {}


def _filter_text(section: _Section) -> str:
    """What the page's filter searches in, in lower case."""
    words = [f"query {section.query_id}", section.reference, section.caption, section.concept]
    for slot in section.slots:
        words += [slot["model"], slot["prompt"] or "", *slot["errors"]]
        words += ["failed"] if slot["errors"] else []
    return " ".join(dict.fromkeys(words)).lower()


def _is_current(path: Path, longest: int, created: float) -> bool:
    from PIL import Image

    try:
        if path.stat().st_mtime < created:
            return False
        with Image.open(path) as image:
            return max(image.size) == longest
    except OSError:
        return False


def _write_file(path: Path, data: bytes) -> None:
    """Write the whole file or nothing."""
    with whole_file(path) as staged:
        staged.write_bytes(data)
