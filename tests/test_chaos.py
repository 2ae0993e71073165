"""Chaos: actors, a node and the driver are killed with SIGKILL; nothing is lost and nothing is false.

The seed is printed; CHAOS_SEED repeats it.
"""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_app.index import runs
from ray_app.output.open import open_output
from tests.conftest import MODEL, PACED, ROOT, SAMPLE, read_tree, run_cli, start_cli
from tests.support.clusters import auth, cluster
from tests.support.outputs import check_all_images_exist
from tests.support.processes import are_gone, children, comes_true, kill, kill_all_with, kill_tree, wait_for

pytestmark = pytest.mark.slow

STEPS = (1, 4, 16)
DENOISES = (6 * 5 - 1) * 8  # two of the sample's prompts are equal
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


def draw_undisturbed(folder: Path, program: str) -> dict[str, bytes]:
    result = run_cli(*COMMAND, cwd=folder, program=program)
    assert result.returncode == 0, result.stderr
    tree = read_tree(folder / "out")
    assert len(tree) == IMAGES
    return tree


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """The images of a paced worker."""
    return draw_undisturbed(tmp_path_factory.mktemp("undisturbed"), PACED)


@pytest.fixture
def undisturbed_by_model(tmp_path_factory) -> dict[str, bytes]:
    """Those of the model itself."""
    return draw_undisturbed(tmp_path_factory.mktemp("undisturbed_by_model"), MODEL)


def check_only_finished_images(output: Path) -> None:
    """Whatever stands in a combined folder has an image's name and is whole."""
    for name, data in read_tree(output).items():
        assert FINISHED.fullmatch(name), name
        assert data.startswith(b"\xff\xd8"), name
        assert data.endswith(b"\xff\xd9"), name


def check_all_is_there(output: Path, undisturbed: dict[str, bytes]) -> None:
    assert read_tree(output) == undisturbed
    assert check_all_images_exist(output) == IMAGES
    assert not (output / ".staging").exists()


def test_twenty_actors_are_killed_in_one_run(tmp_path, undisturbed, chance):
    driver = start_cli(*COMMAND, "--batch_size", "2", cwd=tmp_path, program=PACED)
    output = tmp_path / "out"
    assert comes_true(lambda: read_tree(output), 90), driver.communicate()
    kills = images = 0
    while driver.poll() is None and kills < 25:
        # a batch whose actors die one after another counts as their cause: so let two through before the next kill, and
        # spare the younger actor
        enough = images + 4 * len(STEPS)
        comes_true(lambda enough=enough: len(read_tree(output)) >= enough or driver.poll() is not None, 60)
        time.sleep(chance.uniform(0, 0.3))
        images = len(read_tree(output))
        workers = children(driver.pid, "ray::MapWorker")
        if workers:
            kill(min(workers))
            kills += 1
            check_only_finished_images(output)
    _, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    assert kills >= 20
    check_all_is_there(output, undisturbed)
    (record,) = runs.read_all(open_output(str(output)))
    # repeated is at most what was in flight: one batch per killed actor
    assert record["summary"]["batches_replayed"] <= kills
    assert record["summary"]["images_written"] == IMAGES


def test_ten_drivers_are_killed_one_after_another(tmp_path, undisturbed, chance):
    output = tmp_path / "out"
    committed = 0
    for phase in ("start", "drawing", "part", "planning", "writing") * 2:
        slow = {"SECONDS_A_PROMPT": "0.5", "TEST_FOLDER": str(tmp_path)}  # so that none comes to its end
        driver = start_cli(*COMMAND, cwd=tmp_path, program=PACED, **slow)
        images, parts = len(read_tree(output)), len(list(output.rglob("*.parquet")))
        if phase == "drawing":
            comes_true(lambda images=images: len(read_tree(output)) > images, 60)
            time.sleep(chance.uniform(0, 2))
        elif phase == "writing":
            comes_true(lambda pid=driver.pid: children(pid, "write_images") and any(output.glob(".staging/*/*")), 8)
        elif phase == "part":
            comes_true(lambda parts=parts: len(list(output.rglob("*.parquet"))) > parts, 60)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0.2, 1.5) if phase == "planning" else chance.uniform(2, 9))
        workers = children(driver.pid, "ray::Map")
        kill(driver.pid)
        driver.communicate()
        wait_for("the driver's workers end", lambda workers=workers: are_gone(workers), 20)
        if output.exists():
            check_only_finished_images(output)
            rows = check_all_images_exist(output) if list(output.rglob("*.parquet")) else 0
            print(f"killed while {phase}: {len(read_tree(output))} images, {rows} rows")
            assert rows >= committed
            committed = rows
            kill_compaction(output, chance)
    kill_all_with(str(tmp_path))  # Ray's own processes outlive a driver that is killed while it starts them
    time.sleep(runs.ORPHAN_SECONDS)  # what a killed compaction leaves has no record: until then it counts as in use
    result = run_cli(*COMMAND, cwd=tmp_path, program=PACED)
    assert result.returncode == 0, result.stderr
    check_all_is_there(output, undisturbed)
    states = [record["state"] for record in runs.read_all(open_output(str(output)))]
    if "nothing to generate" not in result.stdout:  # else the last kill came after the last row
        assert states.pop() == "complete"
    assert set(states) <= {"died", "complete"}
    assert states.count("died") >= 8, states  # a driver may come to its end just before it is killed


def kill_compaction(output: Path, chance: random.Random) -> None:
    """Start one, end it somewhere between its first import and its last file; the index is as true as before."""
    compaction = start_cli("compact", "--output_base_path", str(output))
    time.sleep(chance.uniform(0.3, 1.5))
    kill(compaction.pid)
    compaction.communicate()
    if list(output.rglob("*.parquet")):
        check_all_images_exist(output)


def batches_begun(log: Path, processes: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Process and number of prompts of each batch that began, of these processes."""
    lines = log.read_text().splitlines() if log.exists() else []
    batches = [(int(process), int(size)) for process, size in map(str.split, lines)]
    return [batch for batch in batches if processes is None or batch[0] in processes]


def test_a_node_is_taken_away_and_brought_back(tmp_path, undisturbed):
    log = tmp_path / "drawn"
    with cluster("--num-cpus=1", PYTHONPATH=str(ROOT), DRAWN_LOG=str(log)) as nodes:
        node = nodes.start(f"--address={nodes.address}", "--num-cpus=1")
        wait_for("a raylet", lambda: children(node.pid, "raylet"), 60)
        output = tmp_path / "out"
        joined = ["--address", nodes.address, "--num_workers", "2"]
        driver = start_cli(*COMMAND, *joined, cwd=tmp_path, program=PACED, **auth(False))
        worker = "ray::MapWorker(MapBatches(PacedWorker))."
        wait_for("the node's worker", lambda: children(node.pid, worker) and read_tree(output), 120)
        own = children(node.pid, worker)
        begun = len(batches_begun(log, own))
        wait_for("a batch begins on the node", lambda: len(batches_begun(log, own)) > begun, 60)
        kill_tree(node)
        check_only_finished_images(output)
        nodes.start(f"--address={nodes.address}", "--num-cpus=1")
        _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    check_all_is_there(output, undisturbed)
    sizes = [size for _, size in batches_begun(log)]
    assert set(sizes) == {4}  # what went with the node is drawn elsewhere in whole batches, not prompt by prompt
    assert len(sizes) > DENOISES // 4


def test_a_submitted_job_loses_a_node_for_good(tmp_path, undisturbed_by_model):
    """Of two nodes that draw one dies; its actor, and the batches that wait for it, move to the other at the tail."""
    with cluster("--num-cpus=0", PYTHONPATH=str(ROOT)) as head:
        nodes, sockets = [], head.folder / "session_latest" / "sockets"
        for number in (2, 3):  # one after the other, or they would take the same names for their sockets
            nodes.append(head.start(f"--address={head.address}", "--num-cpus=1"))
            wait_for(f"{number} raylets", lambda number=number: len(list(sockets.glob("raylet*"))) == number, 60)
        output = tmp_path / "out"
        entry = [sys.executable, "-m", "jobs.generate", "--json_file", "ray_app/sample.json", *FLAGS]
        submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", f"--address={head.dashboard}"]
        probe = [*submit, "--no-wait", "--", "true"]  # the agent that starts jobs comes up after the dashboard
        wait_for(
            "the head takes jobs",
            lambda: not subprocess.run(probe, env=head.environment, capture_output=True).returncode,
            120,
        )
        job = subprocess.Popen(
            [*submit, "--working-dir", ".", "--", *entry, "--output_base_path", str(output), "--num_workers", "2"],
            cwd=ROOT,
            env=head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        drawing = "ray::MapWorker(MapBatches(ImageWorker))."
        ready = comes_true(lambda: read_tree(output) and all(children(node.pid, drawing) for node in nodes), 180)
        assert ready, job.communicate(timeout=1)
        kill_tree(nodes[0])
        check_only_finished_images(output)
        log, _ = job.communicate(timeout=400)
    assert job.returncode == 0, log
    assert "images/s" in log
    check_all_is_there(output, undisturbed_by_model)
