"""Verifying: each kind of damage is found under its own name, and a repair leaves the rest to generate."""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli import main
from ray_app.generation.generate import generate
from ray_app.generation.job import prepare
from ray_app.generation.options import Generate
from ray_app.index import runs
from ray_app.index.rows import read_recipes
from ray_app.machine import pixel_versions
from ray_app.maintenance.rewrite import rewrite
from ray_app.output.open import open_output
from tests.conftest import SAMPLE, read_tree
from tests.support.outputs import (
    RECIPE,
    add_images,
    check_index_is_true,
    kill_and_repeat,
    newest_rows,
    parts,
    running,
    set_hardware,
    set_versions,
    write_images,
)
from tests.support.synthetic import SyntheticWorker

STEP1, STEP4 = "proxy_images_sdxl_step1", "proxy_images_sdxl_step4"
IMAGE = f"{STEP4}/combined/combined_100103_1.jpg"
SLOTS = ("--json_file", str(SAMPLE), "--num_prompts", "2")
FLAGS = {"model_path": "tiny", "max_inference_steps": 4, "save_steps": ("1", "4"), "num_prompts": 2}


def verified(output, capsys, *flags):
    """The exit code and the json report."""
    capsys.readouterr()
    code = main(["verify", "--output_base_path", str(output), "--format", "json", *flags])
    return code, json.loads(capsys.readouterr().out)


def problems(output, capsys, *flags):
    """What is found, as (kind, name, detail)."""
    code, report = verified(output, capsys, *flags)
    found = [(problem["kind"], problem["name"], problem["detail"]) for problem in report["problems"]]
    assert code == bool(found)
    assert sum(report["counts"].values()) == len(found)
    return found


def asked(output, **flags):
    return Generate(json_file=str(SAMPLE), output_base_path=str(output), num_workers="1", **{**FLAGS, **flags})


def rewrite_row(output, path, **changes):
    """A newer row for an image: the index as another program, or a fault, could have left it."""
    (row,) = [row for row in newest_rows(output) if row["path"] == path]
    row |= changes | {"created_at": None}
    row = {name: value for name, value in row.items() if value is not None}
    recipe = next(iter(read_recipes(open_output(str(output)), "sdxl").values()))
    add_images(output, runs.new_id(), [(row, None)], dataclasses.replace(RECIPE, **recipe))


def replace_image(output, path, data):
    """Other bytes, with a row that says so."""
    (output / path).write_bytes(data)
    rewrite_row(output, path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def output_by_model(drawn_by_model, tmp_path):
    """A copy of what the tiny model generated, which it can generate again."""
    return Path(shutil.copytree(drawn_by_model, tmp_path / "out"))


def test_a_finished_output_is_clean_in_every_respect(output_by_model, capsys):
    output = output_by_model
    code, report = verified(output, capsys, *SLOTS, "--deep", "--redraw", "24")
    sizes = [len(data) for data in read_tree(output).values()]
    assert code == 0
    assert report == {
        "output": str(output), "models": ["sdxl"], "parts": len(parts(output)), "rows": 24, "files": 24,
        "bytes": sum(sizes), "counts": {}, "problems": [],
    }  # fmt: skip


def lose(output):
    (output / IMAGE).unlink()
    return [("missing file", IMAGE, "does not exist (query 2, prompt 1, image 0)")]


def cut(output):
    size = (output / IMAGE).stat().st_size
    (output / IMAGE).write_bytes((output / IMAGE).read_bytes()[:100])
    return [("wrong size", IMAGE, f"100 bytes instead of {size:,} (query 2, prompt 1, image 0)")]


def flip(output):
    data = bytearray((output / IMAGE).read_bytes())
    before = hashlib.sha256(data).hexdigest()
    data[300] ^= 1
    (output / IMAGE).write_bytes(data)
    after = hashlib.sha256(data).hexdigest()
    detail = f"{after[:12]}… instead of {before[:12]}… (query 2, prompt 1, image 0)"
    return [("wrong sha256", IMAGE, detail)]


def fail(output):
    """The row says so; then its image, left from before, is nobody's."""
    changes = {"status": "failed", "bytes": None, "sha256": None, "error_type": "FloatingPointError"}
    rewrite_row(output, IMAGE, **changes, error_message="not finite")
    (output / IMAGE).unlink()
    return [("failed image", IMAGE, "FloatingPointError: not finite (query 2, prompt 1, image 0)")]


def stray(output):
    (output / STEP1 / "combined/notes.txt").write_text("mine")
    (output / STEP4 / "combined/combined_9_0.jpg").write_bytes((output / IMAGE).read_bytes())
    (output / STEP4 / "notes.txt").write_bytes(b"")
    (output / "proxy_images_sdxl_x0_step2/combined").mkdir(parents=True)
    (output / "proxy_images_sdxl_x0_step2/combined/combined_9_0.jpg").write_bytes(b"")
    return [
        ("stray file", f"{STEP1}/combined/notes.txt", "not an image that proxyqueue wrote"),
        ("stray file", f"{STEP4}/combined/combined_9_0.jpg", "no ok row of the index"),
        ("stray file", f"{STEP4}/notes.txt", "not an image that proxyqueue wrote"),
        ("stray file", "proxy_images_sdxl_x0_step2/combined/combined_9_0.jpg", "no ok row of the index"),
    ]


def cache(output):
    """One older than the images, and one of the right age, which is no problem."""
    for name in ("aug_features_clip.npz", "combined/source_features_clip.npz"):
        (output / STEP4 / name).write_bytes(b"features")
    old = time.time() - 3600
    os.utime(output / STEP4 / "aug_features_clip.npz", (old, old))
    return [("stale cache", f"{STEP4}/aug_features_clip.npz", "older than the folder's newest image")]


def leave(output):
    (output / ".staging/run-0").mkdir(parents=True)
    (output / ".staging/run-0/half").write_bytes(b"unfinished")
    return [("leftover", ".staging/run-0/half", "its run has ended")]


def damage(output):
    path = parts(output)[0].with_name("part-0.parquet")
    path.write_bytes(b"no parquet at all")
    size = "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file."
    return [("unreadable part", "index/model=sdxl/part-0.parquet", size)]


def flatten(output):
    """An image of one colour whose bytes are what the row says."""
    data = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(data, "JPEG")
    replace_image(output, IMAGE, data.getvalue())
    return [("bad picture", IMAGE, "only one colour (query 2, prompt 1, image 0)")]


def shrink(output):
    data = io.BytesIO()
    Image.open(output / IMAGE).crop((0, 0, 32, 64)).save(data, "JPEG")
    replace_image(output, IMAGE, data.getvalue())
    return [("bad picture", IMAGE, "32 x 64 pixels instead of 64 x 64 (query 2, prompt 1, image 0)")]


def garble(output):
    replace_image(output, IMAGE, b"not an image")
    detail = "can't be decoded: not an image of a known format (query 2, prompt 1, image 0)"
    return [("bad picture", IMAGE, detail)]


@pytest.mark.parametrize(
    "spoil",
    [lose, cut, flip, fail, stray, cache, leave, damage, flatten, shrink, garble],
    ids=lambda spoil: spoil.__name__,
)
def test_each_damage_is_found_repaired_and_nothing_else_is_touched(spoil, output, drawn, capsys):
    expected = spoil(output)
    assert problems(output, capsys, "--deep", *SLOTS) == expected
    kind = expected[0][0]
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    code, report = verified(output, capsys, "--deep", *SLOTS, "--repair")
    assert code == 1
    assert bool(report["repaired"]) == (kind != "failed image")
    for path, data in before.items():  # nothing is lost but what can be made again
        aside = output / ".set_aside" / path.relative_to(output)
        remade = path.suffix in (".parquet", ".npz") or ".staging" in path.parts
        assert remade or (path if path.exists() else aside).read_bytes() == data
    assert not (output / ".staging").exists()
    check_index_is_true(output)
    lost = 1 if report["to_redraw"] else 0
    assert report["to_redraw"] == ({STEP4: 1} if lost else {})
    assert prepare(asked(output)).plan.images_to_generate == lost
    assert {kind for kind, _, _ in problems(output, capsys, "--deep", *SLOTS)} <= {
        "missing slot", "uneven reference", "failed image",
    }  # fmt: skip
    same = {name: data for name, data in read_tree(output).items() if name.startswith("proxy_") and name != IMAGE}
    assert {name: data for name, data in same.items() if name.endswith(".jpg")} == {
        name: data for name, data in read_tree(drawn).items() if name != IMAGE
    }


def test_files_that_systems_leave_are_passed_over(output, capsys):
    """Files of macOS, Windows and NFS: next to images, parts and run records."""
    (part,) = parts(output)
    for folder in (part.parent, output / "runs", output / STEP4 / "combined", output / STEP4):
        for name in (f"._{part.name}", "._x.json", ".DS_Store", "Thumbs.db", "desktop.ini", ".nfs000000000001"):
            (folder / name).write_bytes(b"no part of it")
    code, report = verified(output, capsys, "--deep", *SLOTS, "--repair")
    assert (code, report["problems"], report["parts"]) == (0, [], 1)
    assert prepare(asked(output)).plan.images_to_generate == 0
    assert not (output / ".set_aside").exists()
    assert main(["query", "--output_base_path", str(output), "SELECT count(*) AS n FROM images"]) == 0
    assert "24" in capsys.readouterr().out


def test_a_folder_that_was_moved_and_linked_back_is_the_same_to_every_command(output, tmp_path, capsys):
    combined = output / STEP4 / "combined"
    combined.rename(tmp_path / "larger_disk")
    combined.symlink_to(tmp_path / "larger_disk")
    (output / STEP4 / "again").symlink_to(output)  # never followed for ever
    (tmp_path / "larger_disk" / "stray.jpg").write_bytes(b"x")
    strays = [name for kind, name, _ in problems(output, capsys, *SLOTS) if kind == "stray file"]
    assert strays == [f"{STEP4}/combined/stray.jpg"]
    (output / STEP4 / "again").unlink()
    (tmp_path / "larger_disk" / "stray.jpg").unlink()
    code, report = verified(output, capsys, "--deep", *SLOTS, "--repair")
    assert (code, report["problems"], report["files"]) == (0, [], 24)
    assert prepare(asked(output)).plan.images_to_generate == 0
    assert main(["clean", "--output_base_path", str(output), "--model_type", "sdxl", "--yes"]) == 0
    assert list((tmp_path / "larger_disk").iterdir()) == []


def test_generate_after_repair_makes_it_whole_bit_for_bit(ray_local, output, drawn, capsys):
    flip(output)
    (output / STEP1 / "combined/combined_100101_0.jpg").unlink()
    assert main(["verify", "--output_base_path", str(output), "--repair"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == [
        "repaired: 2 rows dropped, 1 files quarantined",
        f"images that `proxyqueue generate` with the run's flags regenerates: 1 of {STEP1}, 1 of {STEP4}",
    ]
    assert generate(asked(output), SyntheticWorker) == 0
    assert problems(output, capsys, "--deep", *SLOTS) == []
    images = {name: data for name, data in read_tree(output).items() if not name.startswith(".set_aside")}
    assert images == read_tree(drawn)


def test_the_text_report_counts_and_names_the_first_twenty(output, capsys):
    for path in (output / STEP4).rglob("*.jpg"):
        path.unlink()
    for number in range(30):
        (output / STEP1 / f"combined/x{number:02}").write_text("")
    assert main(["verify", "--output_base_path", str(output)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[1:3] == [
        "       12  missing file         the index has the image, but its file does not exist",
        "       30  stray file           a file in a step's folder that no ok row of the index has",
    ]
    assert sum(line.startswith(f"  {STEP4}/") for line in out) == 12
    assert sum(line.startswith(f"  {STEP1}/combined/x") for line in out) == 20
    assert out[-1] == "  and 10 more (--format json names all)"


def test_slots_of_the_annotations_without_a_row_and_with_another(output, tmp_path, capsys):
    entries = json.loads(SAMPLE.read_text())
    entries[1]["multi_gpt-3.5_opt"][1] = "another prompt"
    (tmp_path / "test.json").write_text(json.dumps(entries))
    flags = ("--json_file", str(tmp_path / "test.json"), "--num_prompts", "3")
    found = problems(output, capsys, *flags)
    missing = [name for kind, name, _ in found if kind == "missing slot"]
    assert missing == [f"{folder}: query {q}, prompt 2, image 0" for folder in (STEP1, STEP4) for q in range(6)]
    drawn_prompt = json.loads(SAMPLE.read_text())[1]["multi_gpt-3.5_opt"][1]
    detail = f"prompt is {drawn_prompt!r} in the index and 'another prompt' in the annotations"
    assert [problem for problem in found if problem[0] == "other slot"] == [
        ("other slot", f"{folder}: query 1, prompt 1, image 0", detail) for folder in (STEP1, STEP4)
    ]


def test_a_reference_with_fewer_images_is_named(output, capsys):
    """Row and file of one image are gone: nothing else tells of it without the annotations."""

    def drop(rows):
        return np.asarray(rows["query_id"]) * 100 + np.asarray(rows["step"]) * 10 + rows["prompt_index"] == 241

    assert rewrite(open_output(str(output)).writer("dropper"), "sdxl", drop).dropped == 1
    (output / IMAGE).unlink()
    (output / ".staging/dropper").rmdir()
    detail = "1 images in the index, most references have 2"
    assert problems(output, capsys) == [("uneven reference", f"{STEP4}/combined: 100103", detail)]


def test_images_that_differ_when_regenerated_are_named(output_by_model, capsys):
    output = output_by_model
    other = (output / STEP4 / "combined/combined_100101_0.jpg").read_bytes()
    assert other != (output / IMAGE).read_bytes()
    sha256 = [hashlib.sha256(data).hexdigest()[:12] for data in ((output / IMAGE).read_bytes(), other)]
    replace_image(output, IMAGE, other)
    assert problems(output, capsys, "--deep") == []
    here = pixel_versions()
    for part in parts(output):
        set_versions(part, [here | {"torch": "2.12.1"}])
    versions = f"(this output has images of torch 2.12.1, this run has torch {here['torch']})"
    detail = f"sha256 {sha256[0]}… now, {sha256[1]}… in the index {versions}"
    assert problems(output, capsys, "--redraw", "100") == [("redrawn differently", IMAGE, detail)]


def test_images_of_other_hardware_are_compared_by_their_pixels(output_by_model, capsys):
    """One is slightly different, as other kernels make it, and one is another image."""
    output = output_by_model
    with Image.open(output / IMAGE) as image:
        pixels = np.asarray(image).astype(int)
    slightly = Image.fromarray(np.clip(pixels + np.resize([0, 1, 0, -1], pixels.shape), 0, 255).astype(np.uint8))
    changed = io.BytesIO()
    slightly.save(changed, format="JPEG", quality=95)
    replace_image(output, IMAGE, changed.getvalue())
    other = f"{STEP4}/combined/combined_100101_0.jpg"
    replace_image(output, other, (output / STEP4 / "combined/combined_100102_0.jpg").read_bytes())
    assert {name for _, name, _ in problems(output, capsys, "--redraw", "100")} == {IMAGE, other}
    for part in parts(output):
        set_hardware(part, [{"device": "NVIDIA H100", "capability": "9.0", "torch": "2.13", "driver": "580"}])
    capsys.readouterr()
    assert main(["verify", "--output_base_path", str(output), "--format", "json", "--redraw", "100"]) == 1
    printed = capsys.readouterr()
    (problem,) = json.loads(printed.out)["problems"]
    assert (problem["kind"], problem["name"]) == ("redrawn differently", other)
    assert re.fullmatch(r"PSNR \d+\.\d dB, below 30 dB", problem["detail"])
    assert "generated on NVIDIA H100 (9.0, driver 580, torch 2.13), compared on CPU (" in printed.err


def test_redraw_reports_what_it_cannot_generate(tmp_path, capsys):
    write_images(tmp_path, "run-1", [1], steps=(1,), recipe=dataclasses.replace(RECIPE, device="cuda"))
    write_images(tmp_path, "run-2", [2], steps=(1,), recipe=dataclasses.replace(RECIPE, model_path="/gone"))
    table = pq.read_table(parts(tmp_path)[0], partitioning=None)
    found = problems(tmp_path, capsys, "--redraw", "2")
    assert [kind for kind, _, _ in found] == ["not redrawn"] * 2
    assert any("generated on a GPU, and this machine has none" in detail for _, _, detail in found)
    assert any(detail.startswith("/gone: can't be loaded as sdxl") for _, _, detail in found)
    pq.write_table(table.replace_schema_metadata(None), parts(tmp_path)[0])
    details = {detail for _, _, detail in problems(tmp_path, capsys, "--redraw", "2")}
    assert "no part of the index holds its recipe in full" in details


def test_images_of_a_run_that_is_going_on_are_no_strays_and_not_repaired(output, capsys):
    files = open_output(str(output)).writer("run-live")
    with subprocess.Popen(["sleep", "60"]) as process:
        running(files, process.pid)
        files.write(f"{STEP4}/combined/combined_999_0.jpg", b"its row comes later")
        (files.output.staging(files.run_id)).mkdir(parents=True, exist_ok=True)
        (files.output.staging(files.run_id) / "half").write_bytes(b"unfinished")
        assert problems(output, capsys) == []
        assert main(["verify", "--output_base_path", str(output), "--repair"]) == 2
        assert "run still active; wait for its end, or verify without --repair" in capsys.readouterr().err
        process.kill()
    assert {kind for kind, _, _ in problems(output, capsys)} == {"stray file", "leftover"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--redraw", "-1"], "--redraw -1: must be at least 0"),
        (["--json_file", "/none"], "/none: no such file; name the annotations with --json_file"),
    ],
)
def test_refusals(output, flags, message, capsys):
    assert main(["verify", "--output_base_path", str(output), *flags]) == 2
    assert capsys.readouterr().err == f"proxyqueue: {message}\n"


def test_a_place_without_an_output_is_refused(tmp_path, capsys):
    assert main(["verify", "--output_base_path", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"proxyqueue: --output_base_path {tmp_path / 'none'}: no such folder\n"
    assert main(["verify", "--output_base_path", str(tmp_path)]) == 2
    assert "holds no index and no images of sdxl or flux" in capsys.readouterr().err


def test_a_file_that_is_quarantined_twice_is_kept_twice(output, capsys):
    for text in ("first", "second"):
        (output / STEP1 / "notes.txt").write_text(text)
        assert main(["verify", "--output_base_path", str(output), "--repair"]) == 1
    kept = {path.name: path.read_text() for path in (output / ".set_aside" / STEP1).iterdir()}
    assert kept == {"notes.txt": "first", "notes.txt.1": "second"}


def test_a_repair_killed_at_any_moment_leaves_a_true_index_and_the_next_ends_it(tmp_path, capsys):
    made = tmp_path / "made"
    write_images(made, "run-2", range(6))
    write_images(made, "run-1", range(3), text="redrawn")
    for number in range(0, 6, 2):
        write_images(made, f"run-x{number}", [number], steps=(8,))
        (made / f"proxy_images_sdxl_step8/combined/combined_r{number}_0.jpg").write_bytes(b"wrong" * number)
        (made / f"proxy_images_sdxl_step1/combined/stray{number}").write_text("")

    def check_files_of_rows_exist(copy):
        """A wrong file is quarantined only when its row is gone."""
        assert [row["path"] for row in newest_rows(copy) if not (copy / row["path"]).exists()] == []

    flags = ["verify", "--output_base_path", "OUTPUT", "--repair"]
    for copy in kill_and_repeat(made, tmp_path, *flags, check=check_files_of_rows_exist):
        assert problems(copy, capsys) == []
        assert len(check_index_is_true(copy)) == 12
