"""Cleaning: what goes goes together, rows first; what proxyqueue did not write stays; nobody is surprised."""

import json
import os
import pty
import subprocess
import sys

import pytest

from ray_app.cli import main
from ray_app.generation.job import prepare
from ray_app.generation.options import Generate
from ray_app.index import runs
from ray_app.output.open import open_output
from tests.conftest import SAMPLE, read_tree
from tests.support.outputs import (
    age,
    check_index_is_true,
    give_process,
    kill_and_repeat,
    newest_rows,
    parts,
    running,
    write_images,
)


def cleaned(output, *flags):
    return main(["clean", "--output_base_path", str(output), *flags])


def everything(output):
    return {path: path.stat().st_mtime_ns for path in output.rglob("*")}


def test_a_steps_images_rows_and_caches_are_removed_and_can_be_regenerated(output, drawn, capsys):
    for step in (1, 4):
        (output / f"proxy_images_sdxl_step{step}/aug_features_clip.npz").write_bytes(b"features")
    size = sum(len(data) for name, data in read_tree(output).items() if "step4/" in name)
    assert cleaned(output, "--model_type", "sdxl", "--steps", "4", "--yes") == 0
    assert capsys.readouterr().out.splitlines() == [
        "index/model=sdxl             12 rows",
        f"proxy_images_sdxl_step4      1 feature caches, 12 images, {size + 8:,} bytes",
        f"to remove: 12 rows, 13 files, {size + 8:,} bytes",
        "removed",
    ]
    assert read_tree(output) == {name: data for name, data in read_tree(drawn).items() if "step1/" in name}
    assert check_index_is_true(output) == set(read_tree(output))
    assert not (output / "proxy_images_sdxl_step4").exists()
    assert (output / "proxy_images_sdxl_step1/aug_features_clip.npz").exists()
    flags = {"model_path": "tiny", "max_inference_steps": 4, "save_steps": ("1", "4"), "num_prompts": 2}
    todo = prepare(Generate(json_file=str(SAMPLE), output_base_path=str(output), **flags)).plan
    assert (todo.images_existing, todo.images_to_generate, todo.steps_to_run()) == (12, 12, 48)


def test_a_dry_run_says_what_would_go_and_touches_nothing(output, capsys):
    (output / "proxy_images_sdxl_step1/combined/notes.txt").write_text("mine")
    before = everything(output)
    assert cleaned(output, "--model_type", "sdxl", "--dry_run") == 0
    assert everything(output) == before
    out = capsys.readouterr().out.splitlines()
    size = sum(len(data) for name, data in read_tree(output).items() if name.endswith(".jpg"))
    assert out[0] == "index/model=sdxl             24 rows"
    assert out[-2:] == [
        f"to remove: 24 rows, 24 files, {size:,} bytes",
        "stays: proxy_images_sdxl_step1/combined/notes.txt",
    ]


def test_snapshots_and_models_are_told_apart(tmp_path):
    write_images(tmp_path, "run-1", range(3), steps=(1, 4), snapshots=("xt", "x0"))
    assert cleaned(tmp_path, "--model_type", "flux", "--yes") == 0
    assert len(check_index_is_true(tmp_path)) == 12
    assert cleaned(tmp_path, "--model_type", "sdxl", "--snapshot", "x0", "--steps", "1", "--yes") == 0
    assert {(row["snapshot"], row["step"]) for row in newest_rows(tmp_path)} == {("xt", 1), ("xt", 4), ("x0", 4)}
    assert check_index_is_true(tmp_path) == set(read_tree(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index", "proxy_images_sdxl_step1", "proxy_images_sdxl_step4", "proxy_images_sdxl_x0_step4",
    ]  # fmt: skip


def test_all_leaves_only_what_others_wrote(output, capsys):
    strange = ["proxy_images_sdxl_step1/combined/notes.txt", "runs/mine/log.json", "index/README", "thesis.txt"]
    for name in strange:
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("mine")
    (output / ".staging/run-0").mkdir(parents=True)
    (output / ".staging/run-0/half").write_bytes(b"unfinished")
    parts(output)[0].with_name("part-damaged.parquet").write_bytes(b"no parquet")
    assert cleaned(output, "--all", "--yes") == 0
    left = sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    assert left == sorted(strange)
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stays: ")]
    assert named == [f"stays: {name}" for name in (strange[0], strange[2], strange[1], strange[3])]
    assert not (output / ".staging").exists()
    capsys.readouterr()
    assert cleaned(output, "--all") == 0
    assert capsys.readouterr().out.startswith("to remove: 0 rows, 0 files, 0 bytes\n")


def test_caches_alone(output, drawn):
    for name in ("aug_features_clip.npz", "source_features_b.npz", "other.npz"):
        (output / "proxy_images_sdxl_step4" / name).write_bytes(b"features")
    assert cleaned(output, "--model_type", "sdxl", "--caches", "--steps", "1", "--yes") == 0
    assert len(list(output.rglob("*.npz"))) == 3
    assert cleaned(output, "--all", "--caches", "--yes") == 0
    assert [path.name for path in output.rglob("*.npz")] == ["other.npz"]
    assert read_tree(output) == read_tree(drawn)
    assert len(check_index_is_true(output)) == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--model_type: name the model to remove, or remove everything with --all"),
        (["--all", "--steps", "4"], "--all: removes everything; leave out --steps"),
        (["--model_type", "sdxl", "--steps", "0"], "--steps 0: steps begin at 1"),
        (["--model_type", "sdxl"], "No terminal to confirm on: pass --yes (try --dry_run first"),
    ],
)
def test_refusals_remove_nothing(output, flags, message, capsys):
    before = everything(output)
    assert cleaned(output, *flags) == 2
    assert capsys.readouterr().err.startswith(f"proxyqueue: {message}")
    assert everything(output) == before


def test_a_damaged_part_is_refused_since_its_rows_are_not_known(output, capsys):
    damaged = parts(output)[0].with_name("part-damaged.parquet")
    damaged.write_bytes(b"no parquet")
    assert cleaned(output, "--model_type", "sdxl", "--yes") == 2
    assert capsys.readouterr().err.startswith(f"proxyqueue: {damaged}: not a readable part of the index: Parquet")
    assert len(check_files(output)) == 24


def check_files(output):
    return [name for name in read_tree(output) if name.endswith(".jpg")]


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("n", 2, 24), ("", 2, 24)])
def test_it_asks_on_a_terminal(output, answer, code, left):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_app", "clean", "--output_base_path", str(output), "--model_type", "sdxl"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code, err
    assert f"Remove this from {output}? [y/N]" in out
    assert len(check_files(output)) == left
    assert ("not confirmed; nothing was removed" in err) == bool(left)


def test_a_run_that_is_going_on_is_left_in_peace(output, capsys):
    files = open_output(str(output)).writer("run-live")
    with subprocess.Popen(["sleep", "60"]) as process:
        record = running(files, process.pid)
        assert cleaned(output, "--model_type", "sdxl", "--yes") == 2
        path = output / "runs/run-live.json"
        assert capsys.readouterr().err == (
            f"proxyqueue: {path}: run still active; wait for its end, stop it, or pass --force\n"
        )
        give_process(record, process.pid, host="x")
        age(record)
        assert cleaned(output, "--model_type", "sdxl", "--steps", "1", "--yes") == 0
        running(files, process.pid)
        assert cleaned(output, "--model_type", "sdxl", "--steps", "4", "--yes", "--force") == 0
        process.kill()
    assert check_files(output) == []
    assert json.loads(path.read_text())["state"] == "running"
    assert runs.active_runs(files.output) == []


def test_a_kill_at_any_moment_leaves_a_true_index_and_the_next_run_ends_it(tmp_path):
    """Also where images were generated twice: no older row, of other bytes, may become the newest one."""
    made = tmp_path / "made"
    write_images(made, "run-2", range(6))
    write_images(made, "run-1", range(3), text="redrawn")
    flags = ["clean", "--output_base_path", "OUTPUT", "--model_type", "sdxl", "--steps", "4", "--yes"]
    for copy in kill_and_repeat(made, tmp_path, *flags):
        images = read_tree(copy)
        assert set(images) == check_index_is_true(copy)
        assert len(images) == 6
        assert not (copy / "proxy_images_sdxl_step4").exists()


def test_an_older_row_never_counts_again(tmp_path):
    """Killed before each change in turn; by the parts' names the one with the newest row would go first."""
    made = tmp_path / "made"
    write_images(made, "run-2", [0], steps=(4,))
    write_images(made, "run-1", [0], steps=(4,), text="redrawn")
    flags = ["clean", "--output_base_path", "OUTPUT", "--all", "--yes"]
    for copy in kill_and_repeat(made, tmp_path, *flags):
        assert not list(copy.rglob("*"))
