"""Outputs of many images without a model, what makes an index true, and a SIGKILL at an exact moment."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.recipe import Recipe
from ray_app import process
from ray_app.cli import RESUME
from ray_app.generation.options import Generate
from ray_app.generation.recipes import resolve
from ray_app.index import runs
from ray_app.index.rows import read_rows
from ray_app.index.schema import HARDWARE_KEY, KEY, SCHEMA, VERSIONS_KEY
from ray_app.index.writer import IndexWriter
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Writer

RECIPE: Recipe = resolve(Generate(model_path="tiny"))

TINY_OF_0_1_0 = "builtin:245ff976647506b0"
"""Revision of the tiny SDXL that generated tests/data/output_0.1.0: other weights than those shipped now."""

KILLS = """
import json, os, shutil, signal, sys
from ray_app.maintenance import clean, compact, verify
from ray_app.arguments import parse
from ray_app.cli import COMMANDS, main

def run(output, moment):
    arguments = [output if word == "OUTPUT" else word for word in words]
    read, write = os.pipe()
    child = os.fork()
    if not child:
        call(arguments, moment, write)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(read) as report:
        return code, report.read()

def call(arguments, moment, report):
    changes = 0
    def count(event, _):
        nonlocal changes
        if event in ("os.remove", "os.rename", "os.rmdir"):
            if changes == moment:
                os.kill(os.getpid(), int(sent))
            changes += 1
    sys.addaudithook(count)
    with open(f"{folder}/said{moment}", "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    code = main(arguments)
    sys.stdout.flush()
    os.write(report, str(changes).encode())
    os._exit(code)

made, folder, sent, *words = sys.argv[1:]
parse(f"proxyqueue {words[0]}", COMMANDS[words[0]][0], words[1:])  # what this imports is imported once
code, changes = run(shutil.copytree(made, f"{folder}/undisturbed"), None)
codes = []
for moment in range(int(changes)):
    copy = shutil.copytree(made, f"{folder}/copy{moment}")
    killed, _ = run(copy, moment)
    shutil.copytree(copy, f"{folder}/killed{moment}")
    codes.append((killed, run(copy, None)[0]))
print(json.dumps([code, codes]))
"""
"""Runs a command on a copy of an output, then on further copies: on each killed before one of its changes to the tree,
and once more to its end. Each run is a process of its own; what a kill left is kept."""


INTERRUPTED = "proxyqueue: interrupted"
INTERRUPTED_RESUMES = f"{INTERRUPTED}; rerun the same command to resume"


def image_row(
    query: int,
    step: int,
    snapshot: str = "xt",
    prompt: int = 0,
    reference: str | None = None,
    image_format: str = "jpg",
    recipe: Recipe = RECIPE,
) -> dict[str, Any]:
    """The columns that say which image it is, with status "ok" and its path; of the reference r{query} unless given."""
    reference = f"r{query}" if reference is None else reference
    file = layout.image_file(layout.COMBINED, reference, prompt, image_format)
    return {
        "query_id": query,
        "reference_img_id": reference,
        "prompt_index": prompt,
        "image_index": 0,
        "k": prompt,
        "snapshot": snapshot,
        "step": step,
        "path": f"{layout.step_folder(recipe.model_type, snapshot, step)}/{file}",
        "status": "ok",
        "denoise_id": f"d{query}-{prompt}",
    }


def add_images(
    output: Path,
    run_id: str,
    images: Iterable[tuple[dict[str, Any], bytes | None]],
    recipe: Recipe = RECIPE,
    rows_per_part: int = 5000,
) -> None:
    """Write and index images without generating them: each a row of the index and its file's bytes, None for no file.

    A row has the file's size and sha256 unless it says otherwise.
    """
    files = open_output(str(output)).writer(run_id)
    rows = []
    for row, data in images:
        if data is not None:
            files.write(row["path"], data)
            row = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **row}
        rows.append(row)
    writer = IndexWriter(files, recipe)
    for start in range(0, len(rows), rows_per_part):
        writer.append(pa.Table.from_pylist(rows[start : start + rows_per_part]))
        writer.commit()
    files.output.remove_staging(files.run_id)


def write_images(
    output: Path,
    run_id: str,
    queries: Sequence[int],
    steps: Sequence[int] = (1, 4),
    snapshots: Sequence[str] = ("xt",),
    text: str = "image",
    status: str = "ok",
    recipe: Recipe = RECIPE,
    rows_per_part: int = 8,
) -> None:
    """Add images of one prompt per query, in many small parts; `text` decides the files' bytes."""
    images = []
    for query, snapshot, step in itertools.product(queries, snapshots, steps):
        row = image_row(query, step, snapshot, recipe=recipe) | {"status": status, "prompt": f"p{query}"}
        data = f"{text} {row['path']}".encode() if status == "ok" else None
        images.append((row, data))
    add_images(output, run_id, images, recipe, rows_per_part)


def newest_rows(output: Path, model_type: str = "sdxl") -> list[dict]:
    """What a reader sees: the newest row of each image, in the order of the keys."""
    table = read_rows(open_output(str(output)), model_type, SCHEMA.names)
    newest = {tuple(row[name] for name in KEY): row for row in table.to_pylist()}
    return [newest[key] for key in sorted(newest)]


def check_index_is_true(output: Path, model_type: str = "sdxl") -> set[str]:
    """Every ok row's file exists with its size and sha256; the paths of those files."""
    paths = set()
    for row in newest_rows(output, model_type):
        if row["status"] == "ok":
            data = (output / row["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"]), row["path"]
            paths.add(row["path"])
    return paths


def check_all_images_exist(output: Path, model_type: str = "sdxl") -> int:
    """The same, and no row says that an image failed; how many images there are."""
    assert {row["status"] for row in newest_rows(output, model_type)} <= {"ok"}
    return len(check_index_is_true(output, model_type))


def parts(output: Path, model_type: str = "sdxl") -> list[Path]:
    return sorted((output / layout.index_folder(model_type)).glob("*.parquet"))


def set_hardware(part: Path, hardware: list[dict[str, str]]) -> None:
    """Let a part say that its images were generated on other hardware."""
    _set_metadata(part, HARDWARE_KEY, hardware)


def set_versions(part: Path, recorded: list[dict[str, str]]) -> None:
    """Let a part say that its images were generated by other versions."""
    _set_metadata(part, VERSIONS_KEY, recorded)


def _set_metadata(part: Path, key: bytes, value: Any) -> None:
    table = pq.read_table(part, partitioning=None)
    metadata = {**(table.schema.metadata or {}), key: json.dumps(value)}
    pq.write_table(table.replace_schema_metadata(metadata), part, compression="zstd", write_page_checksum=True)


def kill_and_repeat(
    made: Path,
    folder: Path,
    *arguments: str,
    check: Callable[[Path], object] = check_index_is_true,
    sent: signal.Signals = signal.SIGKILL,
) -> list[Path]:
    """Run a command on copies of an output, each sent a signal before another of its changes; then on each again.

    Arguments name the output as OUTPUT; `check` says what holds of it after each signal. A signal that can be handled
    ends the command with 130 and one line, and leaves nothing staged. Returns the copies, after the second run.
    """
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(made), str(folder), str(int(sent)), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    code, codes = json.loads(result.stdout)
    assert code in (0, 1)
    assert len(codes) > 1
    for moment, (killed, repeated) in enumerate(codes):
        print(f"{sent.name} before change {moment} of {len(codes)}")
        if sent == signal.SIGKILL:
            assert killed == -signal.SIGKILL
        else:
            said = (folder / f"said{moment}").read_text()
            assert killed == 130, said
            assert said.splitlines()[-1] == (INTERRUPTED_RESUMES if arguments[0] in RESUME else INTERRUPTED)
            assert "Traceback" not in said
            assert not list((folder / f"killed{moment}").glob(".staging/*"))
        check(folder / f"killed{moment}")
        assert repeated in (0, 1)
    return [folder / f"copy{moment}" for moment in range(len(codes))]


def running(files: Writer, pid: int) -> Path:
    """The record of a run that is active in this process; its path."""
    runs.Record(files).beat()
    path = files.output.root / f"runs/{files.run_id}.json"
    give_process(path, pid)
    return path


def give_process(record: Path, pid: int, **changes: object) -> None:
    """Change a run's record to that of another process on this host."""
    values = {**json.loads(record.read_text()), "pid": pid, "process": process.identity(pid), **changes}
    whole = record.with_suffix(".tmp")
    whole.write_text(json.dumps(values))
    whole.replace(record)


def age(record: Path, seconds: float = 10**6) -> None:
    """Make a record look unchanged for this many seconds."""
    os.utime(record, (time.time() - seconds,) * 2)
