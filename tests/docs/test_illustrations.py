"""The illustrations of README and docs show what the code of today makes: their sources have not changed since."""

import re

import numpy as np
import pytest
from PIL import Image

from jobs.illustrations import make, record
from tests.support.pages import PAGES, links, name

SHOWN = {link.rpartition("/")[2] for page in PAGES for link in links(page) if ".github/" in link}


def test_every_illustration_is_recorded_and_shown():
    files = {file.name for file in record.FOLDER.iterdir() if file != record.RECORD}
    assert SHOWN == set(record.read()) == files


@pytest.mark.parametrize("illustration", sorted(record.read()))
def test_an_illustration_is_made_of_what_its_sources_are_today(illustration):
    recorded = record.read()[illustration]
    result = recorded.pop("result")
    assert result == record.hash_of(record.FOLDER / illustration)
    changed = [source for source, hashed in record.hashes(recorded).items() if hashed != recorded[source]]
    assert not changed, f"make it again: python -m jobs.illustrations.make --names {illustration}"


def test_the_command_makes_each_from_the_sources_that_are_recorded(tmp_path):
    for illustration, one in make.all_illustrations(tmp_path).items():
        assert set(record.read()[illustration]) == {*one.sources, "result"}, illustration


def test_a_change_of_code_is_seen_and_one_of_its_prose_is_not(tmp_path):
    file = tmp_path / "code.py"
    hashes = []
    for text in ('"""A."""\nx = 1', '"""B."""\n\nx = 1  # one', "x = 2"):
        file.write_text(text)
        hashes.append(record.hash_of(tmp_path))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_illustration_has_a_text_for_those_who_do_not_see_it(page):
    for text in re.findall(r"!\[(.*?)\]\([^)]*\.github/", page.read_text(), flags=re.DOTALL):
        assert len(text.split()) >= 5, text


def test_an_unknown_name_is_one_line(capsys):
    arguments = ["--names", "prxies.png"]
    assert make.run_module("jobs.illustrations.make", make.Make, make.make, arguments) == 2
    assert "--names prxies.png: not one of proxies.png" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("illustration", ["proxies.png", "demo.png"])
def test_made_again_it_looks_the_same(illustration, tmp_path):
    make.all_illustrations(tmp_path)[illustration].make(tmp_path / illustration)
    shown = [
        np.asarray(Image.open(folder / illustration).convert("RGBA"), float) for folder in (record.FOLDER, tmp_path)
    ]
    assert shown[0].shape == shown[1].shape
    assert np.abs(shown[0] - shown[1]).mean() < 2  # other processors: other low bits, and so other palettes
