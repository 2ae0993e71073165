"""Whatever stands in a file or an index: an answer or one line, nothing outside OUTPUT, the newest row counts."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.recipe import Capture
from ray_app.annotations import circo
from ray_app.errors import Refused
from ray_app.index import existing
from ray_app.index.rows import read_rows
from ray_app.index.writer import IndexWriter
from ray_app.output import layout
from ray_app.output.open import open_output

FIELD = "multi_gpt-3.5_opt"
unhurried = settings(deadline=None)

any_text = st.text(st.characters())  # lone surrogates and NUL too
names = st.one_of(any_text, st.sampled_from(["..", "../x", "a/b", "/etc", "a_b", ".", "\\", "x" * 300, "7", "é", "图"]))
numbers = st.one_of(st.integers(-3, 3), st.integers(), st.integers(10**90, 10**120), st.floats())
leaves = st.one_of(st.none(), st.booleans(), numbers, names)
any_json = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4)
)
nearly_valid = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.integers(0, 3), st.integers(0, 3).map(str), any_json),
        "reference_img_id": st.one_of(st.integers(0, 2), names, any_json),
        FIELD: st.one_of(st.lists(names, max_size=3), any_json),
        "relative_caption": any_json,
    },
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("annotations") / "test.json"


def check_load(place: Path, content: bytes, strict: bool = False) -> None:
    """The file loads, or is refused on one line; what it requests has names of its own within OUTPUT."""
    place.write_bytes(content)
    try:
        annotations = circo.load(str(place), FIELD, 2, strict)
    except Refused as refused:
        lines = [str(refused)]
        assert lines[0].startswith(f"{place}: ")
    else:
        lines = annotations.skipped + annotations.warnings
        slots = circo.slots(annotations.queries(), 2, 0, "slot", "jpg")
        check_names(slots["file"].to_pylist())
        json.dumps(slots["prompt"].to_pylist()).encode()
    for line in lines:
        assert line.splitlines() == [line]
        line.encode()


def check_names(files: list[str]) -> None:
    root = Path("/out/proxy_images_sdxl_step1")
    assert len(set(files)) == len(files)
    for file in files:
        path = root / file
        assert path.resolve() == path
        assert path.parent.parent == root
        assert len(path.name.encode()) <= 255


@unhurried
@given(st.one_of(any_json, st.lists(st.one_of(nearly_valid, nearly_valid, any_json), max_size=6)), st.booleans())
def test_any_json_loads_or_is_refused_on_one_line(place, value, strict):
    check_load(place, json.dumps(value).encode(), strict)


@unhurried
@given(st.lists(nearly_valid, min_size=1, max_size=4), st.data())
def test_text_that_was_json_loads_or_is_refused_on_one_line(place, value, data):
    """With raw characters instead of escapes, a byte flipped or the end cut off."""
    content = bytearray(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(0, 255))
    check_load(place, bytes(content[: data.draw(st.integers(where, len(content)))]))


@unhurried
@given(st.binary())
def test_any_bytes_load_or_are_refused_on_one_line(place, content):
    check_load(place, content)


@pytest.mark.parametrize("around", ['[{"id": %s}]', '[{"id": 1, "reference_img_id": %s}]', "%s"])
def test_nesting_of_any_depth_is_refused_on_one_line(place, around):
    """Every depth: a text can be just shallow enough to be read and too deep to be shown."""
    for depth in [*range(1, 1_050), 100_000]:
        check_load(place, (around % ("[" * depth + "]" * depth)).encode())


@pytest.mark.parametrize("digits", [19, 20, 101, 4_300, 4_301, 100_000])
@pytest.mark.parametrize("field", ["id", "reference_img_id"])
def test_numbers_of_any_length_load_or_are_refused_on_one_line(place, digits, field):
    entry = json.dumps([{"id": 1, "reference_img_id": 2, FIELD: ["a"], field: 0}])
    check_load(place, entry.replace(f'"{field}": 0', f'"{field}": {"9" * digits}').encode())


@unhurried
@given(st.lists(names, min_size=1, max_size=6), st.integers(0, 2**30))
def test_ids_that_try_to_leave_stay_in_the_tree(ids, k):
    plain = {name for name in ids if layout.why_not_plain(name) is None}
    own = [layout.query_folder(number, bool(number % 2)) for number in range(len(plain))]
    check_names([layout.image_file(folder, name, k, "webp") for folder, name in zip(own, sorted(plain), strict=True)])


rows_of_images = st.lists(
    st.fixed_dictionaries(
        {
            "query_id": st.integers(0, 2),
            "prompt_index": st.integers(0, 1),
            "step": st.sampled_from([1, 2, 4]),
            "snapshot": st.sampled_from(["xt", "x0"]),
            "status": st.sampled_from(["ok", "failed"]),
            "prompt": st.text(),
            "error_message": st.none() | st.text(),
            "seed": st.integers(-(2**63), 2**63 - 1),
            "sigma": st.none() | st.floats(width=32, allow_nan=False),
            "prompt_truncated": st.booleans(),
        }
    ),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(commits=st.lists(rows_of_images, min_size=1, max_size=4))
def test_rows_come_back_as_they_went_in_and_the_newest_counts(tmp_path_factory, recipe_for, commits):
    """Random images in random parts; the files of all of them are there."""
    files = open_output(str(tmp_path_factory.mktemp("out"))).writer("run")
    writer = IndexWriter(files, recipe_for(model_path="tiny"))
    queries = [circo.Query(number, f"r{number}", ("a", "b"), "combined") for number in range(3)]
    slots = circo.slots(queries, 1, 0, "image", "jpg")
    of_key = {(slot["query_id"], slot["prompt_index"]): slot for slot in slots.to_pylist()}
    written, newest = [], {}
    for commit in commits:
        for row in commit:
            slot = of_key[row["query_id"], row["prompt_index"]]
            path = f"{layout.step_folder('sdxl', row['snapshot'], row['step'])}/{slot['file']}"
            files.write(path, b"123")
            same = {name: slot[name] for name in ("reference_img_id", "image_index", "k", "denoise_id")}
            written.append({**row, **same, "path": path, "bytes": 3})
            newest[row["query_id"], row["prompt_index"], row["snapshot"], row["step"]] = row["status"]
            writer.append(pa.Table.from_pylist([written[-1]]))
        writer.commit()
    back = read_rows(files.output, "sdxl", list(written[0]) if written else ["query_id"])
    assert [{name: row[name] for name in row if name != "created_at"} for row in back.to_pylist()] == written
    captures = [Capture(step, snapshot) for step in (1, 4) for snapshot in ("xt", "x0")]
    masks = existing.find_existing(files.output, "sdxl", slots, captures, 1)
    for slot, there in zip(slots.to_pylist(), masks.ok.tolist(), strict=True):
        keys = [(slot["query_id"], slot["prompt_index"], capture.snapshot, capture.step) for capture in captures]
        assert there == [newest.get(key) == "ok" for key in keys]
