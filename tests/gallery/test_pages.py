"""gallery: its files as text, and its pages in a real Chromium; what they show, and that a prompt is only ever text."""

import dataclasses
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_app.cli import main
from ray_app.gallery import pages as gallery
from tests.support.outputs import RECIPE, add_images, image_row
from tests.support.synthetic import encoded

EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> \"'&{{ 7 * 7 }}"
SLOTS = 2
PADDED_BYTES = 4096
FLUX = dataclasses.replace(RECIPE, model_type="flux")


def write_output(
    output: Path,
    queries,
    snapshots=("xt", "x0"),
    steps=(1, 4),
    recipe=RECIPE,
    run_id="run-1",
    size=(96, 64),
    blue=200,
    **more,
):
    """Real jpgs of one number of bytes whose colour tells query and step, two prompts per query.

    `more` are columns of every row.
    """
    images = []
    for query, prompt, snapshot, step in itertools.product(queries, range(SLOTS), snapshots, steps):
        colours = np.full((size[1], size[0], 3), (query * 3 % 256, step * 50, blue), np.uint8)
        row = image_row(query, step, snapshot, prompt, reference=f"r#{query}", recipe=recipe)
        row |= {"prompt": f"a thing number{query:03} view{prompt}" + " rare" * (query % 25 == 5), "seed": 0}
        row |= {"width": size[0], "height": size[1]}
        images.append((row | more, encoded(colours, "jpg").ljust(PADDED_BYTES, b"\0")))
    add_images(output, run_id, images, recipe)


def shown(output, *arguments):
    return main(["gallery", "--output_base_path", str(output), *arguments])


@pytest.fixture(scope="module")
def sixty(tmp_path_factory) -> Path:
    """Sixty queries on two pages: query 7's prompts are HTML, one image of query 8 failed, one of query 9 is gone."""
    output = tmp_path_factory.mktemp("gallery") / "out"
    write_output(output, range(60))
    write_output(output, [7], run_id="run-2", prompt=EVIL)
    failed = {"bytes": None, "error_type": "OutOfMemory", "error_message": "too <b>large</b>"}
    write_output(output, [8], ["xt"], [4], run_id="run-3", status="failed", **failed)
    (output / "proxy_images_sdxl_step1/combined/combined_r#9_0.jpg").unlink()
    entries = [
        {"id": n, "relative_caption": f"caption {n} {EVIL if n == 7 else ''}", "shared_concept": f"concept {n}"}
        for n in range(60)
    ]
    (output.parent / "test.json").write_text(json.dumps(entries))
    assert shown(output, "--json_file", str(output.parent / "test.json"), "--thumbnails", "48") == 0
    return output


class Page(HTMLParser):
    """A page as a browser parses it: its elements with their attributes, in order, and its texts."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def structure(self) -> list[tuple[str, list[str]]]:
        """Tags and attributes by name, without what they hold."""
        return [(tag, list(attributes)) for tag, attributes in self.elements]

    def values(self, attribute: str) -> str:
        return "\n".join(attributes.get(attribute) or "" for _, attributes in self.elements)


def write_hostile_gallery(folder: Path, text: str) -> Path:
    """A gallery whose output's name, ids, prompts, captions and errors all hold this text; its folder."""
    output = folder / f"out {text.replace('/', '')}"
    texts = {"prompt": f"prompt {text}", "reference_img_id": f"id {text}"}
    write_output(output, [1], ["xt"], [1], **texts)
    failed = {"status": "failed", "bytes": None, "error_type": f"type {text}", "error_message": f"message {text}"}
    write_output(output, [1], ["xt"], [4], run_id="run-2", **texts, **failed)
    entry = {"id": 1, "relative_caption": f"caption {text}", "shared_concept": f"concept {text}"}
    (folder / "test.json").write_text(json.dumps([entry]))
    pages = folder / "pages"
    assert shown(output, "--json_file", str(folder / "test.json"), "--gallery_path", str(pages)) == 0
    return pages


def test_texts_of_an_output_are_never_markup(tmp_path):
    """A page has the same elements and attributes whatever the texts are, and shows them as they are."""
    plain = Page(write_hostile_gallery(tmp_path / "plain", "plain") / "index.html")
    hostile = Page(write_hostile_gallery(tmp_path / "hostile", EVIL) / "index.html")
    assert hostile.structure() == plain.structure()
    shown_texts = "".join(hostile.texts)
    for name in ("prompt", "id", "type", "message", "caption", "concept"):
        assert f"{name} {EVIL}" in shown_texts
    assert f"out {EVIL.replace('/', '')}" in shown_texts
    for attribute, names in {"alt": ["prompt"], "title": ["message"], "data-text": ["prompt", "id", "caption"]}.items():
        for name in names:
            assert f"{name} {EVIL}" in hostile.values(attribute)


def test_texts_of_an_output_are_never_code(tmp_path):
    """The script of the texts is one assignment of JSON, and the page's own script makes no HTML of them."""
    pages = write_hostile_gallery(tmp_path, f"{EVIL} \u2028 ';alert(1)//")
    script = (pages / "queries.js").read_text()
    assert script.isascii()
    ((query, page, text),) = json.loads(script.removeprefix("window.QUERIES = ").removesuffix(";\n"))
    assert (query, page) == (1, 1)
    assert f"prompt {EVIL} \u2028 ';alert(1)//".lower() in text
    makers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|parseFromString|\beval\b|\bFunction\b"
    assert re.findall(makers, (pages / "gallery.js").read_text()) == []


def test_a_page_runs_and_loads_nothing_but_its_own_files(sixty):
    """By its content security policy, which comes before whatever it governs; the page holds no script or style."""
    for name in ("index.html", "page2.html"):
        page = Page(sixty / "gallery" / name)
        tags = [tag for tag, _ in page.elements]
        policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert policies == [
            "default-src 'none'; img-src 'self' file: data:; style-src 'self' file:; script-src 'self' file:"
        ]
        place = next(place for place, (_, a) in enumerate(page.elements) if "http-equiv" in a)
        assert not {"script", "link", "style", "img"} & set(tags[:place])
        assert [a["src"] for tag, a in page.elements if tag == "script"] == ["queries.js", "gallery.js"]
        assert "style" not in tags
        names = {attribute for _, attributes in page.elements for attribute in attributes}
        assert {attribute for attribute in names if attribute == "style" or attribute.startswith("on")} == set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium with its driver, of Debian's packages or from the PATH."""
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.common.exceptions import WebDriverException

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        short = {**os.environ, "TMPDIR": "/tmp"}  # a path of Chromium's sockets has 107 bytes
        started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver, env=short))
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {str(error.msg).splitlines()[0]}")
    yield started
    started.quit()


@pytest.fixture
def page(browser, sixty) -> Iterator[Any]:
    """The first page; whatever a test does, the console stays empty."""
    browser.get_log("browser")
    browser.get((sixty / "gallery/index.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def press(page, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def visible_queries(page) -> list[int]:
    script = "return [...document.querySelectorAll('.query')].filter(q => q.offsetParent).map(q => q.id)"
    return [int(name.removeprefix("query-")) for name in page.execute_script(script)]


def wait(page, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page, 60).until(lambda driver: driver.execute_script(f"return {script}"))


IN_VIEW = "[...document.images].filter(i => i.offsetParent && i.getBoundingClientRect().top < innerHeight && i.src)"


def test_images_load_and_far_ones_are_lazy(page):
    wait(page, f"{IN_VIEW}.length && {IN_VIEW}.every(i => i.complete && i.naturalWidth === 48)")
    loaded = page.execute_script("return [...document.images].filter(i => i.naturalWidth).length")
    assert 4 <= loaded < 300
    assert (
        page.execute_script("return [...document.images].filter(i => i.naturalWidth && i.closest('.x0')).length") == 0
    )
    assert visible_queries(page) == list(range(50))
    query = page.find_element("id", "query-3")
    assert "reference r#3" in query.text
    assert "concept 3: caption 3" in query.text
    assert "a thing number003 view1" in query.text
    figures = query.find_elements("css selector", ".slot:first-of-type figure.xt figcaption")
    assert [figure.text for figure in figures[:2]] == ["step 1", "step 4"]


def test_the_switch_shows_x0(page):
    press(page, "x")
    wait(page, f"{IN_VIEW}.length && {IN_VIEW}.every(i => i.complete && i.naturalWidth && i.closest('.x0'))")
    page.find_element("css selector", "input[value=xt]").click()
    assert page.execute_script(f"return {IN_VIEW}.every(i => i.closest('.xt'))")


def test_the_filter_filters_and_names_matches_on_other_pages(page):
    press(page, "/", "rare thing")
    assert visible_queries(page) == [5, 30]
    assert page.find_element("id", "found").text == "2 of 50 queries on this page, page 2 (1)"
    page.find_element("link text", "page 2 (1)").click()
    assert page.find_element("id", "filter").get_attribute("value") == "rare thing"
    assert visible_queries(page) == [55]
    press(page, "p")
    assert visible_queries(page) == [5, 30]
    assert "filter=rare+thing" in page.current_url


def test_one_slot_of_a_query_can_match_alone(page):
    press(page, "/", "NUMBER013 view1")
    slots = [s.text for s in page.find_elements("css selector", ".slot") if s.is_displayed()]
    assert [text.splitlines()[0] for text in slots] == ["a thing number013 view1"]


def test_failures_are_shown_as_such_and_what_is_gone_too(page):
    press(page, "/", "failed")
    assert visible_queries(page) == [8]
    cells = [cell.text for cell in page.find_elements("css selector", "#query-8 .none.failed")]
    assert cells == ["failed\nOutOfMemory"] * SLOTS
    assert "OutOfMemory: too <b>large</b>" in page.find_element("id", "query-8").text
    gone = page.find_elements("css selector", "#query-9 figure .none")
    assert [cell.get_attribute("textContent") for cell in gone] == ["missing"]


def test_jumping_to_a_query_of_another_page(page):
    press(page, "g", "57\n")
    wait(page, "document.activeElement.id === 'query-57'")
    assert page.execute_script("return document.activeElement.getBoundingClientRect().top < innerHeight")
    press(page, "g", "999\n")
    assert page.find_element("id", "found").text == "no query 999 here"
    press(page, "j")
    assert page.current_url.endswith("page2.html?snapshot=xt#query-57")


def test_by_keyboard_from_query_to_query_and_through_the_images(page):
    press(page, "j", "j", "j", "k")
    assert page.switch_to.active_element.get_attribute("id") == "query-1"
    from selenium.webdriver.common.keys import Keys

    press(page, Keys.TAB)
    assert page.switch_to.active_element.get_attribute("class") in ("shot", "steps")
    if page.switch_to.active_element.get_attribute("class") == "steps":  # it scrolls, so it has the focus first
        press(page, Keys.TAB)
    press(page, Keys.ENTER)
    image = page.find_element("css selector", "dialog img")
    wait(page, "document.querySelector('dialog img').naturalWidth === 96")
    assert image.get_attribute("alt") == "xt, step 1: a thing number001 view0"
    press(page, Keys.ARROW_RIGHT)
    wait(page, "document.querySelector('dialog img').alt.startsWith('xt, step 4')")
    press(page, Keys.ESCAPE)
    assert not page.find_element("id", "full").is_displayed()
    assert page.switch_to.active_element.get_attribute("class") == "shot"


def test_a_prompt_that_is_html_is_shown_and_not_run(page):
    press(page, "g", "7\n")
    query = page.find_element("id", "query-7")
    wait(page, "document.activeElement.id === 'query-7'")
    assert EVIL in query.text
    assert query.text.count("<script>document.title = 'run'</script>") == 1 + SLOTS
    assert page.title == "out, page 1"
    assert page.find_elements("css selector", "main script, main img[onerror]") == []


def test_on_a_phone_nothing_is_wider_than_the_screen(page):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.refresh()
        press(page, "g", "7\n")
        assert page.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [390, 390]
        prompt, steps = (
            page.execute_script(f"return document.querySelector('#query-7 {name}').getBoundingClientRect().top")
            for name in (".prompt", ".steps")
        )
        assert prompt < steps
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    """WCAG's contrast of at least 4.5 for everything that is written, in both schemes."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        colours = page.execute_script(
            "const ground = getComputedStyle(document.body).backgroundColor;"
            "return ['body', 'small', '.facts', '.error', 'figcaption', '.caption', '.none', 'a.page']"
            ".map(name => [ground, getComputedStyle(document.querySelector(name)).color])"
        )
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    grounds = {ground for ground, _ in colours}
    assert (luminance(*grounds) < 0.1) == (scheme == "dark")
    for ground, ink in colours:
        low, high = sorted((luminance(ground), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, ink


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_folder_can_be_sent_alone(browser, sixty, tmp_path):
    """Without the output next to it, thumbnails are shown, also in the dialog."""
    alone = Path(shutil.copytree(sixty / "gallery", tmp_path / "sent"))
    texts = [path.read_text() for path in alone.glob("*.*") if path.is_file()]
    assert not any(str(sixty) in text or "http://" in text or "https://" in text for text in texts)
    browser.get((alone / "index.html").as_uri())
    wait(browser, f"{IN_VIEW}.length && {IN_VIEW}.every(i => i.complete && i.naturalWidth === 48)")
    browser.find_element("css selector", "a.shot").click()
    wait(browser, "document.querySelector('dialog img').naturalWidth === 48")
    browser.get_log("browser")  # that the image itself is not there


def test_copies_are_small_and_made_once(sixty, capsys):
    copies = list((sixty / "gallery/thumbnails").rglob("*.jpg"))
    assert len(copies) == 60 * 2 * 4 - SLOTS - 1
    assert {Image.open(path).size for path in copies} == {(48, 32)}
    capsys.readouterr()
    assert shown(sixty, "--json_file", str(sixty.parent / "test.json"), "--thumbnails", "48") == 0
    assert "thumbnails       0 new\n" in capsys.readouterr().out


@pytest.mark.parametrize("size", [(96, 64), (64, 64)])
def test_an_image_that_was_generated_again_gets_a_new_copy(tmp_path, capsys, size):
    """Of the same number of bytes, and also where nothing but its colour is another."""
    output = tmp_path / "out"
    write_output(output, range(2), ["xt"])
    image = "proxy_images_sdxl_step4/combined/combined_r#{}_0.jpg"
    before = (output / image.format(1)).read_bytes()
    assert shown(output) == 0
    write_output(output, [1], ["xt"], [4], run_id="run-2", size=size, blue=100)
    after = (output / image.format(1)).read_bytes()
    assert (after != before, len(after)) == (True, len(before))
    capsys.readouterr()
    assert shown(output) == 0
    assert f"thumbnails       {SLOTS} new\n" in capsys.readouterr().out
    copies = [Image.open(output / "gallery/thumbnails" / image.format(query)) for query in (0, 1)]
    assert [copy.size for copy in copies] == [(96, 64), size]
    for query, blue in ((0, 200), (1, 100)):
        assert copies[query].getpixel((9, 9)) == pytest.approx((query * 3, 200, blue), abs=4)
    assert shown(output) == 0
    assert "thumbnails       0 new\n" in capsys.readouterr().out


def test_copies_of_another_size_are_made_again(tmp_path, capsys):
    write_output(tmp_path, range(2), ["xt"], [4])
    for longest, made in ((48, 2 * SLOTS), (48, 0), (80, 2 * SLOTS)):
        capsys.readouterr()
        assert shown(tmp_path, "--thumbnails", str(longest)) == 0
        assert f"thumbnails       {made} new\n" in capsys.readouterr().out
        copies = (tmp_path / "gallery/thumbnails").rglob("*.jpg")
        assert {max(Image.open(path).size) for path in copies} == {longest}


def test_a_smaller_gallery_leaves_no_pages_of_a_larger_one(tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"
    write_output(output, range(5), ["xt"], [1])
    monkeypatch.setattr(gallery, "QUERIES_A_PAGE", 2)
    assert shown(output, "--thumbnails", "0") == 0
    assert sorted(path.name for path in (output / "gallery").glob("*.html")) == [
        "index.html", "page2.html", "page3.html"
    ]  # fmt: skip
    assert (
        'src="../proxy_images_sdxl_step1/combined/combined_r%234_0.jpg"' in (output / "gallery/page3.html").read_text()
    )
    (output / "gallery/page_of_mine.html").write_text("")
    assert shown(output, "--thumbnails", "0", "--query_ids", "1", "4", "--limit", "1") == 0
    assert sorted(path.name for path in (output / "gallery").glob("*.html")) == ["index.html", "page_of_mine.html"]
    assert 'id="query-1"' in (output / "gallery/index.html").read_text()
    assert not (output / "gallery/thumbnails").exists()


def test_clean_takes_the_gallery_with_all_else(tmp_path, capsys):
    output = tmp_path / "out"
    write_output(output, range(2), ["xt"])
    assert shown(output) == 0
    (output / "gallery/mine.txt").write_text("")
    assert main(["clean", "--output_base_path", str(output), "--all", "--yes"]) == 0
    assert "stays: gallery/mine.txt" in capsys.readouterr().out
    assert [path.relative_to(output).as_posix() for path in output.rglob("*")] == ["gallery", "gallery/mine.txt"]


def test_a_file_that_is_not_an_image_is_named_and_the_page_continues(tmp_path, capsys):
    output = tmp_path / "out"
    write_output(output, [0], ["xt"], [1])
    bad = output / "proxy_images_sdxl_step1/combined/combined_r#0_1.jpg"
    bad.write_bytes(b"x" * bad.stat().st_size)
    assert shown(output) == 0
    assert f"proxyqueue: {bad}: can't be shown: " in capsys.readouterr().err
    assert "failed<br>Unreadable" in (output / "gallery/index.html").read_text()


def test_both_models_stand_one_under_the_other(tmp_path):
    output = tmp_path / "out"
    write_output(output, range(2), ["xt"])
    write_output(output, [1], ["xt"], recipe=FLUX, run_id="run-f")
    assert shown(output, "--gallery_path", str(tmp_path / "pages")) == 0
    text = (tmp_path / "pages/index.html").read_text()
    assert re.findall(r"(sdxl|flux), image (\d)", text) == [
        ("sdxl", "0"), ("sdxl", "1"), ("sdxl", "0"), ("flux", "0"), ("sdxl", "1"), ("flux", "1")
    ]  # fmt: skip
    assert 'href="../out/proxy_images_flux_step4/combined/combined_r%231_0.jpg"' in text
    assert shown(output, "--model_type", "flux") == 0
    assert 'id="query-0"' not in (output / "gallery/index.html").read_text()


def test_the_contact_sheet_has_each_image_in_its_place(sixty, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert shown(sixty, "--contact_sheet", str(sheet), "--query_ids", "8", "40", "--thumbnails", "80") == 0
    image = Image.open(sheet).convert("RGB")
    cell, gap, top, left = 80, 8, 32, 316
    assert image.size == (left + 2 * (cell + gap), top + 8 * (cell + gap) + gap)
    for row, query in ((4, 40), (7, 40), (1, 8)):
        for column, step in enumerate((1, 4)):
            middle = (left + column * (cell + gap) + cell // 2, top + row * (cell + gap) + cell // 2)
            assert image.getpixel(middle) == pytest.approx((query * 3, step * 50, 200), abs=4)
    assert image.getpixel((left + cell + gap + cell // 2, top + cell - 9)) == (255, 255, 255)  # the failed one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--thumbnails", "5"], "--thumbnails 5: must be from 16 to 4096, or 0 for none"),
        (["--contact_sheet", "a.gif"], "--contact_sheet a.gif: must end with .png"),
        (["--query_ids", "99"], "--query_ids 99: no image of this query in the index"),
        (["--json_file", "/none"], "/none: no such file; name the annotations with --json_file"),
        (["--model_type", "flux"], "HERE/index: has no image of flux; set --output_base_path"),
        (["--gallery_path", "/proc/none"], "/proc/none: can't be written: No such file or directory"),
    ],
)
def test_invalid_flags_are_refused(sixty, capsys, arguments, message):
    capsys.readouterr()
    assert shown(sixty, *arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"proxyqueue: {message.replace('HERE', str(sixty))}"


def test_more_slots_than_one_image_can_hold_are_refused(sixty, tmp_path, capsys):
    assert shown(sixty, "--contact_sheet", str(tmp_path / "a.png"), "--thumbnails", "4096", "--limit", "2") == 0
    write_output(tmp_path / "large", range(60), ["xt"], [1], size=(300, 300))
    assert shown(tmp_path / "large", "--contact_sheet", str(tmp_path / "b.png")) == 2
    assert "more than 113 rows of 256 pixels; take fewer with --query_ids" in capsys.readouterr().err
