"""features: each image and text once, whatever fails, is killed or was encoded before."""

import hashlib
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli import main
from ray_app.errors import OK, SOME_FAILED, Refused
from ray_app.features import encoder_card, parts
from ray_app.features import features as features_command
from ray_app.features.options import Features
from ray_app.index import runs
from ray_app.output import layout
from ray_app.output.open import open_output
from tests.conftest import PACED, SAMPLE, flip_bit_of_a_page, run_cli, start_cli
from tests.support.encoders import (
    BAD,
    KILLS,
    KILLS_ONCE,
    VECTOR_SIZE,
    SyntheticFeatureWorker,
    save_clip,
    save_config,
    vector_of,
)
from tests.support.outputs import write_images
from tests.support.processes import children, kill, kill_tree, wait_for

QUERIES = range(3)
OWN = [f"proxy_images_sdxl_step{step}/combined/combined_r{query}_0.jpg" for query in QUERIES for step in (1, 4)]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An output with six images, an encoder, and annotations."""
    write_images(tmp_path / "out", "run-1", QUERIES)
    save_config(tmp_path / "clip")
    entries = [{"id": 0, "prompts": ["a dog", "a cat"], "caption": "a dog"}, {"id": 1, "caption": "is red"}]
    (tmp_path / "test.json").write_text(json.dumps(entries))
    return tmp_path


def gallery(here: Path, **contents: bytes) -> str:
    folder = here / "gallery"
    for name, content in contents.items():
        (folder / "a").mkdir(parents=True, exist_ok=True)
        (folder / "a" / f"{name}.jpg").write_bytes(content)
    return str(folder)


def encode(here: Path, worker: type[SyntheticFeatureWorker] = SyntheticFeatureWorker, **flags: Any) -> int:
    """Run the command in this process, with the encoder that takes a checksum for a vector."""
    fixed: dict[str, Any] = {
        "device": "cpu",
        "num_workers": "1",
        "output_base_path": str(here / "out"),
        "batch_size": 4,
    }
    return features_command.features(Features(encoder=str(here / "clip"), **{**fixed, **flags}), worker)


def read(here: Path) -> list[dict[str, Any]]:
    return parts.FeatureParts.of(open_output(str(here / "out")), str(here / "clip")).read().to_pylist()


def content_of(here: Path, row: dict[str, Any]) -> bytes:
    if row["text"] is not None:
        return row["text"].encode()
    files = [here / "out" / row["name"], here / "gallery" / "a" / f"{row['name']}.jpg"]
    return next(file.read_bytes() for file in files if file.is_file())


def check_rows(here: Path, names: list[str], texts: list[str]) -> None:
    """One ok row per name and text, each with the vector of its own content, checksum and encoder."""
    rows = [row for row in read(here) if row["status"] == "ok"]
    assert sorted(row["name"] for row in rows if row["name"]) == sorted(names)
    assert sorted(row["text"] for row in rows if row["text"]) == sorted(texts)
    for row in rows:
        content = content_of(here, row)
        assert row["vector"] == vector_of(content).tolist()
        assert row["sha256"] == (None if row["text"] else hashlib.sha256(content).hexdigest())
        assert (row["encoder"], row["preprocessing"]) == (str(here / "clip"), "targetpad")
        assert row["revision"].startswith("sha256:")
        assert (row["error_type"], row["error_message"]) == (None, None)


def to_encode(capsys: pytest.CaptureFixture[str]) -> str:
    """How many vectors the last run was to encode."""
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "to encode" in line and "requested" in line]
    return line.rsplit(", ", 1)[1]


def write_features(here: Path, contents: dict[str, bytes]) -> Path:
    """A part with the vectors of these names, as a run leaves it."""
    options = Features(encoder=str(here / "clip"), device="cpu")
    encoder = encoder_card.resolve(options)
    recipe = {"encoder": encoder.path, "revision": encoder.revision, "preprocessing": "targetpad"}
    rows = []
    for name, content in contents.items():
        row = {"sha256": hashlib.sha256(content).hexdigest(), "name": name, "status": "ok"}
        bad = {"status": "failed", "error_type": "BadImage", "error_message": "bad"}
        rows.append({**row, **recipe, **(bad if content == BAD else {"vector": vector_of(content)})})
    writer = open_output(str(here / "out")).writer("run-2")
    with parts.FeaturesWriter(writer, encoder.path, recipe, VECTOR_SIZE) as part:
        part.add(pa.Table.from_pylist(rows, part.schema))
    return next((here / "out" / "features").rglob("*.parquet"))


def own_contents(here: Path) -> dict[str, bytes]:
    return {name: (here / "out" / name).read_bytes() for name in OWN}


def test_images_of_the_output_a_gallery_and_texts_are_encoded_once(ray_local, here, capsys):
    same = (here / "out" / OWN[0]).read_bytes()
    images = gallery(here, one=b"1", two=b"1", same=same, bad=BAD)
    flags: dict[str, Any] = {"images": images, "json_file": str(here / "test.json"), "texts": ("prompts", "caption")}
    assert encode(here, **flags) == SOME_FAILED
    assert to_encode(capsys) == "11 to encode"  # 6 of the output, b"1", BAD, 3 texts
    names, texts = [*OWN, "one", "two", "same"], ["a dog", "a cat", "is red"]
    check_rows(here, names, texts)
    (failed,) = [row for row in read(here) if row["status"] == "failed"]
    assert (failed["name"], failed["sha256"]) == ("bad", hashlib.sha256(BAD).hexdigest())
    assert (failed["vector"], failed["error_type"]) == (None, "BadImage")
    assert failed["error_message"] == "not an image of a known format"

    # what failed is tried again, and an image that has other bytes now; another name of encoded bytes costs nothing
    assert encode(here, dry_run=True, **flags) == OK
    assert to_encode(capsys) == "1 to encode"
    write_images(here / "out", "run-2", [1], steps=(4,), text="another")
    gallery(here, bad=b"good", three=b"1")
    assert encode(here, **flags) == OK
    assert to_encode(capsys) == "2 to encode"
    rows = {(row["name"], row["sha256"]): row for row in read(here)}
    for name, content in (("three", b"1"), ("bad", b"good"), (OWN[3], (here / "out" / OWN[3]).read_bytes())):
        assert rows[name, hashlib.sha256(content).hexdigest()]["vector"] == vector_of(content).tolist()

    before = sorted((here / "out").rglob("*"))
    assert encode(here, **flags) == OK
    assert capsys.readouterr().out.endswith("nothing to encode: all 14 requested vectors exist\n")
    assert sorted((here / "out").rglob("*")) == before


def test_a_selection_is_of_the_steps_that_are_named(here, capsys):
    (here / "clip" / "preprocessor_config.json").write_text("{}")
    write_features(here, {name: content for name, content in own_contents(here).items() if "step4" in name})
    for flags, expected in (
        ({"steps": (4,)}, "3 requested, 3 existing, 0 to encode"),
        ({"snapshot": "xt"}, "6 requested, 3 existing, 3 to encode"),
        ({"preprocessing": "model"}, "6 requested, 0 existing, 6 to encode"),
    ):
        assert encode(here, dry_run=True, **flags) == OK
        assert capsys.readouterr().out.splitlines()[-1] == f"vectors          {expected}"


def test_other_weights_are_another_encoder(here, capsys):
    write_features(here, own_contents(here))
    (here / "clip" / "model.safetensors").write_bytes(b"others")
    assert encode(here, dry_run=True) == OK
    assert to_encode(capsys) == "6 to encode"


def test_missing_and_changed_files_are_failures_and_cost_no_other(ray_local, here):
    (here / "out" / OWN[0]).unlink()
    (here / "out" / OWN[1]).write_bytes(b"changed")
    rows = [{"name": "gone", "path": "gone.jpg"}, {"name": "exists", "path": "a/exists.jpg"}]
    gallery(here, exists=b"2")
    pq.write_table(pa.Table.from_pylist(rows), here / "gallery" / "gallery.parquet")
    assert encode(here, images=str(here / "gallery" / "gallery.parquet")) == SOME_FAILED
    check_rows(here, [*OWN[2:], "exists"], [])
    failed = [row for row in read(here) if row["status"] == "failed"]
    kinds = {row["name"]: (row["error_type"], row["sha256"] is None) for row in failed}
    assert kinds == {
        OWN[0]: ("FileNotFoundError", False), OWN[1]: ("ChangedFile", False), "gone": ("FileNotFoundError", True)
    }  # fmt: skip


def test_a_damaged_part_is_quarantined_and_its_vectors_encoded_again(ray_local, here, capsys):
    part = write_features(here, own_contents(here))
    flip_bit_of_a_page(part, "vector.list.element")
    assert main(["verify", "--output_base_path", str(here / "out")]) == 1
    assert f"unreadable part:\n  {part.relative_to(here / 'out')}: " in capsys.readouterr().out
    part.write_bytes(part.read_bytes()[:100])
    assert encode(here) == OK
    assert to_encode(capsys) == "6 to encode"
    assert not part.exists()
    assert (here / "out" / layout.QUARANTINE / part.relative_to(here / "out")).is_file()
    check_rows(here, OWN, [])


def test_the_view_has_one_row_per_vector_and_clean_removes_the_parts(here, capsys):
    write_features(here, {**own_contents(here), "bad": BAD})
    shutil.copy(next((here / "out" / "features").rglob("*.parquet")), here / "out/features/encoder=clip/part-b.parquet")
    sql = "SELECT status, count(*) AS rows, any_value(len(vector)) AS numbers FROM features GROUP BY ALL ORDER BY ALL"
    assert main(["query", "--output_base_path", str(here / "out"), "--format", "csv", sql]) == OK
    shown = ["failed,1,", f"ok,6,{VECTOR_SIZE}"]
    assert capsys.readouterr().out.splitlines()[1:] == shown
    os.rename(here / "out" / layout.INDEX, here / "index")  # as with features of images from elsewhere only
    assert main(["query", "--output_base_path", str(here / "out"), "--format", "csv", sql]) == OK
    assert capsys.readouterr().out.splitlines()[1:] == shown
    assert main(["query", "--output_base_path", str(here / "out"), "SELECT model, path FROM images"]) == OK
    os.rename(here / "index", here / "out" / layout.INDEX)
    assert main(["verify", "--output_base_path", str(here / "out")]) == OK
    assert main(["clean", "--all", "--yes", "--output_base_path", str(here / "out")]) == OK
    assert not list((here / "out").rglob("*.parquet"))


@pytest.mark.slow
def test_a_real_encoder_on_real_images_from_end_to_end(ray_local, drawn, tmp_path, capsys):
    """Real jpgs, one of them truncated, and a tiny CLIP; its vectors are those of the encoder without Ray."""
    from actors.encoder import ImageEncoder

    output = Path(shutil.copytree(drawn, tmp_path / "out"))
    folder = save_clip(tmp_path / "clip")
    (tmp_path / "gallery").mkdir()
    first = sorted((output / "proxy_images_sdxl_step4" / "combined").iterdir())[0]
    (tmp_path / "gallery" / "half.jpg").write_bytes(first.read_bytes()[:500])
    buffer = io.BytesIO()
    Image.new("RGB", (90, 30), (200, 30, 60)).save(buffer, "PNG")
    (tmp_path / "gallery" / "red.png").write_bytes(buffer.getvalue())
    flags = Features(
        encoder=str(folder), device="cpu", num_workers="1", output_base_path=str(output), steps=(4,), batch_size=8,
        images=str(tmp_path / "gallery"), json_file=str(SAMPLE), texts=("relative_caption",),
    )  # fmt: skip
    assert features_command.features(flags) == SOME_FAILED
    rows = parts.FeatureParts.of(open_output(str(output)), str(folder)).read().to_pylist()
    by_name = {row["name"]: row for row in rows if row["name"]}
    assert (by_name["half"]["status"], by_name["half"]["error_type"]) == ("failed", "BadImage")
    texts = [row for row in rows if row["text"]]
    assert len(texts) == len({entry["relative_caption"] for entry in json.loads(SAMPLE.read_text())})
    encoder = ImageEncoder(encoder_card.resolve(flags))
    names = [name for name in by_name if name != "half"]
    files = [output / name if "/" in name else tmp_path / "gallery" / f"{name}.png" for name in names]
    images = [file.read_bytes() for file in files]
    for name, result in zip(names, encoder({"image": images, "text": [None] * len(images)}), strict=True):
        assert np.allclose(by_name[name]["vector"], result.vector, atol=1e-3)
    (text,) = encoder({"image": [None], "text": [texts[0]["text"]]})
    assert np.allclose(texts[0]["vector"], text.vector, atol=1e-3)
    (part,) = (output / "features").rglob("*.parquet")
    metadata = pq.ParquetFile(part).metadata
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    capsys.readouterr()


@pytest.mark.slow
def test_a_file_that_kills_workers_is_given_up_and_costs_no_other(ray_local, here):
    images = gallery(here, one=b"1", kills=KILLS, two=b"2", once=KILLS_ONCE)
    assert encode(here, images=images) == SOME_FAILED
    check_rows(here, [*OWN, "one", "two", "once"], [])
    (failed,) = [row for row in read(here) if row["status"] == "failed"]
    assert (failed["name"], failed["error_type"]) == ("kills", "WorkerDied")


def many(here: Path, count: int = 150) -> list[str]:
    gallery(here, **{f"image{number}": f"image {number}".encode() for number in range(count)})
    flags = ["--output_base_path", str(here / "out"), "--encoder", str(here / "clip"), "--device", "cpu"]
    return ["features", *flags, "--images", str(here / "gallery"), "--batch_size", "4", "--num_workers", "2"]


def written(here: Path) -> int:
    return len(read(here)) if (here / "out" / "features").is_dir() else 0


def resume(here: Path, command: list[str]) -> None:
    """The same command encodes the rest, and no vector twice or wrong."""
    before = written(here)
    done = run_cli(*command, program=PACED, SECONDS_PER_ITEM="0.01")
    assert done.returncode == 0, done.stderr
    assert f"{156:,} requested, {before:,} existing" in done.stdout
    check_rows(here, [*OWN, *(f"image{number}" for number in range(150))], [])
    assert not (here / "out" / layout.STAGING).exists()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_encoded_and_the_same_command_resumes(here):
    command = many(here)
    driver = start_cli(*command, program=PACED)
    wait_for("the first vectors", lambda: written(here), 120)
    driver.send_signal(signal.SIGINT)
    _, error = driver.communicate(timeout=60)
    assert driver.returncode == 130, error
    assert "Traceback" not in error
    assert 0 < written(here) < 156
    (record,) = runs.read_all(open_output(str(here / "out")))
    assert (record["state"], record["kind"]) == ("interrupted", "features")
    resume(here, command)


@pytest.mark.slow
def test_a_killed_driver_loses_no_vector_that_was_committed(here):
    command = many(here)
    driver = start_cli(*command, program=PACED)
    wait_for("the first vectors", lambda: written(here), 120)
    kill_tree(driver)
    assert 0 < written(here) < 156
    resume(here, command)
    states = [record["state"] for record in runs.read_all(open_output(str(here / "out")))]
    assert states == ["died", "complete"]


@pytest.mark.slow
def test_killed_actors_lose_nothing(here):
    command = many(here)
    driver = start_cli(*command, program=PACED)
    for _ in range(2):
        wait_for("an actor", lambda: children(driver.pid, "MapWorker") or driver.poll() is not None, 120)
        before = written(here)
        wait_for("more vectors", lambda before=before: written(here) > before or driver.poll() is not None, 60)
        for actor in children(driver.pid, "MapWorker")[:1]:
            kill(actor)
    _, error = driver.communicate(timeout=240)
    assert driver.returncode == 0, error
    check_rows(here, [*OWN, *(f"image{number}" for number in range(150))], [])


def test_vectors_of_another_size_are_refused(here):
    writer = open_output(str(here / "out")).writer("run-9")
    with parts.FeaturesWriter(writer, str(here / "clip"), dict.fromkeys(parts.RECIPE, "x"), 3) as part:
        part.add(pa.Table.from_pylist([{"name": "a", "vector": [1, 2, 3], "status": "ok"}], part.schema))
    with pytest.raises(Refused, match=r"holds vectors of 3 numbers, those of .*/clip have 16; take another"):
        encode(here)
