"""Outputs of many images without a model, what makes an index true, and a SIGKILL at an exact moment."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from actors.recipe import Recipe
from ray_app import index, layout, runs
from ray_app.index import IndexWriter
from ray_app.options import Generate
from ray_app.recipes import resolve
from ray_app.storage import Storage, open_storage
from tests.conftest import ROOT

RECIPE: Recipe = resolve(Generate(model_path="tiny"))

COMMANDS = """
import json, os, signal, sys
from ray_app import clean, compact, verify
from ray_app.cli import main

def run(moment, arguments, report):
    left = moment
    def count(event, _):
        nonlocal left
        if event in ("os.remove", "os.rename", "os.rmdir"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    os.dup2(2, 1)
    code = main(arguments)
    os.write(report, str(moment - left).encode())
    os._exit(code)

results = []
for moment, arguments in json.loads(sys.argv[1]):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        run(moment, arguments, write)
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    results.append((code, int(os.read(read, 99) or -1)))
print(json.dumps(results))
"""
"""Runs commands one by one, each in a process of its own that is killed before its change `moment` to the tree."""
NEVER = 10**9


def write_images(
    output: Path,
    run_id: str,
    queries: Sequence[int],
    steps: Sequence[int] = (1, 4),
    snapshots: Sequence[str] = ("xt",),
    text: str = "image",
    status: str = "ok",
    recipe: Recipe = RECIPE,
    rows_a_part: int = 8,
) -> None:
    """Write files and rows of one prompt a query, in many small parts; `text` decides the files' bytes."""
    storage = open_storage(str(output), run_id)
    writer = IndexWriter(storage, recipe)
    rows = []
    for query in queries:
        for snapshot in snapshots:
            for step in steps:
                file = layout.image_file(layout.COMBINED, f"r{query}", 0, "jpg")
                path = f"{layout.step_folder(recipe.model_type, snapshot, step)}/{file}"
                data = f"{text} {path}".encode()
                row = {"query_id": query, "reference_img_id": f"r{query}", "prompt_index": 0, "image_index": 0, "k": 0}
                row |= {"snapshot": snapshot, "step": step, "path": path, "status": status, "prompt": f"p{query}"}
                if status == "ok":
                    storage.write(path, data)
                    row |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                rows.append(row)
    for start in range(0, len(rows), rows_a_part):
        writer.append(pa.Table.from_pylist(rows[start : start + rows_a_part]))
        writer.commit()
    storage.remove_staging()


def newest_rows(output: Path, model_type: str = "sdxl") -> list[dict]:
    """What a reader sees: the newest row of each image, in the order of the keys."""
    table = index.read(open_storage(str(output)), model_type, index.SCHEMA.names)
    newest = {tuple(row[name] for name in index.KEY): row for row in table.to_pylist()}
    return [newest[key] for key in sorted(newest)]


def check_index_is_true(output: Path) -> set[str]:
    """Every ok row's file is there with its sha256; the paths of those files."""
    paths = set()
    for row in newest_rows(output):
        if row["status"] == "ok":
            assert hashlib.sha256((output / row["path"]).read_bytes()).hexdigest() == row["sha256"], row["path"]
            paths.add(row["path"])
    return paths


def parts(output: Path, model_type: str = "sdxl") -> list[Path]:
    return sorted((output / layout.index_folder(model_type)).glob("*.parquet"))


def kill_and_repeat(
    made: Path, folder: Path, *arguments: str, times: int = 0, seed: int = 0, true: bool = True
) -> list[Path]:
    """Run a verb on copies of an output, each killed at a random moment; then on each again, to its end.

    Without `times` it is killed at every moment in turn.

    Arguments name the output as OUTPUT. After each kill the index is true, if it was `true`. Returns the copies.
    """
    chance = random.Random(seed)
    undisturbed = Path(shutil.copytree(made, folder / "undisturbed"))
    ((code, changes),) = run_commands([(NEVER, undisturbed)], *arguments)
    assert code in (0, 1)
    moments = [chance.randrange(changes) for _ in range(times)] or list(range(changes))
    copies = [Path(shutil.copytree(made, folder / f"copy{number}")) for number in range(len(moments))]
    print(f"seed {seed}: killed before the changes {moments} of {changes}")
    killed = run_commands(list(zip(moments, copies, strict=True)), *arguments)
    assert [code for code, _ in killed] == [-signal.SIGKILL] * len(copies)
    for copy in copies if true else []:
        check_index_is_true(copy)
    assert {code for code, _ in run_commands([(NEVER, copy) for copy in copies], *arguments)} <= {0, 1}
    return copies


def run_commands(planned: list[tuple[int, Path]], *arguments: str) -> list[tuple[int, int]]:
    """One command on several outputs, each killed before its change of that number: exit code, number of changes."""
    commands = [(moment, [str(output) if a == "OUTPUT" else a for a in arguments]) for moment, output in planned]
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return [(code, changes) for code, changes in json.loads(result.stdout)]


LONG_AGO = "2020-01-01T00:00:00+00:00"


def running(storage: Storage, pid: int) -> Path:
    """The record of a run that goes on in this process; its path."""
    runs.Record(storage).beat()
    path = storage.root / f"runs/{storage.run_id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": pid}))
    return path
