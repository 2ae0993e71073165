"""Chaos: actors, a node and the driver are killed with SIGKILL; nothing is lost and nothing is false.

The seed is printed; CHAOS_SEED repeats it.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ray_app import runs
from ray_app.storage import open_storage
from tests.conftest import SAMPLE, check_index_is_true, read_tree, run_cli, start_cli

pytestmark = pytest.mark.slow

STEPS = (1, 4, 16)
IMAGES = 6 * 5 * 8 * len(STEPS)
FLAGS = [
    "--model_path",
    "tiny",
    "--max_inference_steps",
    "16",
    "--save_steps",
    *map(str, STEPS),
    "--img_per_prompt",
    "8",
]
COMMAND = ["generate", "--json_file", str(SAMPLE), *FLAGS, "--output_base_path", "out"]
FINISHED = re.compile(r"proxy_images_sdxl_step\d+/combined(_query\d+)?/combined_\d+_\d+\.jpg")


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    print(f"CHAOS_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run_cli(*COMMAND, cwd=folder)
    assert result.returncode == 0, result.stderr
    tree = read_tree(folder / "out")
    assert len(tree) == IMAGES
    return tree


def children(ancestor: int, marker: str) -> list[int]:
    """Processes below another whose command line has the marker."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError):
            continue
    found = []
    for process, command in commands.items():
        above: int | None = process
        while above and above != ancestor:
            above = parents.get(above)
        if above == ancestor and marker in command and process != ancestor:
            found.append(process)
    return found


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def wait_for(what: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return False


def check_only_finished_images(output: Path) -> None:
    """Whatever stands in a combined folder has an image's name and is whole."""
    for name, data in read_tree(output).items():
        assert FINISHED.fullmatch(name), name
        assert data.startswith(b"\xff\xd8"), name
        assert data.endswith(b"\xff\xd9"), name


def check_all_is_there(output: Path, undisturbed: dict[str, bytes]) -> None:
    assert read_tree(output) == undisturbed
    assert check_index_is_true(output) == IMAGES
    assert not (output / ".staging").exists()


def test_twenty_actors_are_killed_in_one_run(tmp_path, undisturbed, chance):
    driver = start_cli(*COMMAND, cwd=tmp_path)
    output = tmp_path / "out"
    assert wait_for(lambda: read_tree(output), 90), driver.communicate()
    kills = 0
    while driver.poll() is None and kills < 25:
        time.sleep(chance.uniform(0.1, 1.5))
        workers = children(driver.pid, "ray::MapWorker")
        if workers:
            kill(chance.choice(workers))
            kills += 1
            check_only_finished_images(output)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert kills >= 20
    check_all_is_there(output, undisturbed)
    (record,) = runs.read_all(open_storage(str(output)))
    # repeated is at most what was in flight: a batch an actor killed
    assert record["summary"]["batches_replayed"] <= kills
    assert record["summary"]["images_written"] == IMAGES


def test_ten_drivers_are_killed_one_after_another(tmp_path, undisturbed, chance):
    output = tmp_path / "out"
    committed = 0
    for phase in ("start", "drawing", "part", "planning", "writing") * 2:
        driver = start_cli(*COMMAND, cwd=tmp_path)
        images, parts = len(read_tree(output)), len(list(output.rglob("*.parquet")))
        if phase == "drawing":
            wait_for(lambda images=images: len(read_tree(output)) > images, 60)
            time.sleep(chance.uniform(0, 2))
        elif phase == "writing":
            wait_for(lambda pid=driver.pid: children(pid, "write_images") and any(output.glob(".staging/*/*")), 60)
        elif phase == "part":
            wait_for(lambda parts=parts: len(list(output.rglob("*.parquet"))) > parts, 60)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0.2, 1.5) if phase == "planning" else chance.uniform(2, 9))
        workers = children(driver.pid, "ray::Map")
        kill(driver.pid)
        driver.communicate()
        assert wait_for(lambda workers=workers: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers), 20)
        if output.exists():
            check_only_finished_images(output)
            rows = check_index_is_true(output) if list(output.rglob("*.parquet")) else 0
            print(f"killed while {phase}: {len(read_tree(output))} images, {rows} rows")
            assert rows >= committed
            committed = rows
            kill_compaction(output, chance)
    time.sleep(
        runs.ORPHAN_SECONDS
    )  # what a killed compaction leaves has no record: for so long it counts as somebody's
    result = run_cli(*COMMAND, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    check_all_is_there(output, undisturbed)
    states = [record["state"] for record in runs.read_all(open_storage(str(output)))]
    assert states[-1] == "complete"
    assert set(states[:-1]) <= {"died"}


def kill_compaction(output: Path, chance: random.Random) -> None:
    """Start one, end it somewhere between its first import and its last file; the index is as true as before."""
    compaction = start_cli("compact", "--output_base_path", str(output))
    time.sleep(chance.uniform(0.3, 1.5))
    kill(compaction.pid)
    compaction.communicate()
    if list(output.rglob("*.parquet")):
        check_index_is_true(output)


@pytest.fixture
def raylet(tmp_path_factory) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts nodes of one cluster, each a raylet of its own that can be killed."""
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        command += ["--node-ip-address=127.0.0.1", *arguments]
        environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        kill_tree(process)


def test_a_node_is_taken_away_and_brought_back(raylet, tmp_path, tmp_path_factory, undisturbed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tmp_path_factory.mktemp("r")  # a short path: Ray makes sockets below it
    port = address.rsplit(":", 1)[1]
    raylet("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    assert wait_for(lambda: answers(address), 60)
    node = raylet(f"--address={address}")
    wait_for(lambda: children(node.pid, "raylet"), 60)
    output = tmp_path / "out"
    driver = start_cli(*COMMAND, "--address", address, "--num_workers", "2", cwd=tmp_path, RAY_AUTH_MODE="token")
    assert wait_for(lambda: children(node.pid, "ray::MapWorker(MapBatches(Worker)).") and read_tree(output), 120)
    kill_tree(node)
    check_only_finished_images(output)
    raylet(f"--address={address}")
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    check_all_is_there(output, undisturbed)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, as when a machine goes away."""
    for below in children(process.pid, ""):
        kill(below)
    process.kill()
    process.wait()
