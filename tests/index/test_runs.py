"""Concurrent and successive runs: records, heartbeats, dead runs and what they leave."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_app.errors import Refused
from ray_app.generation import generate
from ray_app.generation.options import Generate
from ray_app.index import runs
from ray_app.output.open import open_output
from tests.conftest import PACED, SAMPLE, read_tree, run_cli, run_python, start_cli
from tests.support.outputs import age, check_all_images_exist, give_process
from tests.support.processes import wait_for

WORK = runs.claimed_images("sdxl", [1, 2, 3, 7], [("xt", 1), ("xt", 4)])


def record_of(root, run_id, work=WORK, **changes):
    """A record that says its run is going on."""
    files = open_output(str(root)).writer(run_id)
    record = runs.Record(files, work=work, **changes)
    record.beat()
    return files, record


def test_a_record_tells_how_the_run_goes(tmp_path):
    files, record = record_of(tmp_path, "run-1")
    (there,) = runs.read_all(files.output)
    assert (there["state"], there["ended_at"], there["pid"]) == ("running", None, os.getpid())
    assert runs.is_alive(there)
    record.beat(counts={"ok": 1})
    assert "counts" not in runs.read_all(files.output)[0]  # the last beat was just now
    record.end("complete", summary={"images_written": 5})
    (there,) = runs.read_all(files.output)
    assert (there["state"], there["summary"]) == ("complete", {"images_written": 5})
    assert there["ended_at"] >= there["started_at"]
    assert not runs.is_alive(there)


def test_a_record_is_written_again_every_ten_seconds(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(runs, "_now", lambda: f"{clock.now} s")
    _, record = record_of(tmp_path, "run-1")
    beats = []
    for clock.now in (9.9, 10.0, 19.9, 20.0):
        record.beat(counts={"ok": int(clock.now)})
        written = json.loads((tmp_path / "runs" / "run-1.json").read_text())
        beats.append((written["heartbeat_at"], written.get("counts")))
    assert beats == [("0.0 s", None), *[("10.0 s", {"ok": 10})] * 2, ("20.0 s", {"ok": 20})]
    assert written["started_at"] == "0.0 s"


def test_work_is_short_for_consecutive_queries():
    assert WORK == {"model_type": "sdxl", "query_ids": [[1, 3], [7, 7]], "captures": [["xt", 1], ["xt", 4]]}


@pytest.mark.parametrize(
    ("other", "query"),
    [
        (("sdxl", [3, 9], [("xt", 4)]), 3),
        (("sdxl", range(100), [("xt", 1), ("x0", 1)]), 1),
        (("sdxl", [4, 5, 6, 8], [("xt", 1)]), None),
        (("sdxl", [1], [("xt", 8), ("x0", 1)]), None),
        (("flux", [1], [("xt", 1)]), None),
    ],
)
def test_the_same_work_twice_is_refused_and_other_work_is_not(tmp_path, other, query):
    record_of(tmp_path, "run-1", runs.claimed_images(*other))
    files, _ = record_of(tmp_path, "run-2")
    if query is None:
        runs.check_no_overlapping_run(files, WORK)
    else:
        with pytest.raises(Refused, match=rf"runs/run-1\.json: run still active .* generates query {query} too; wait"):
            runs.check_no_overlapping_run(files, WORK)


def test_of_two_that_begin_at_once_the_older_goes_on(tmp_path):
    older, _ = record_of(tmp_path, "run-1")
    younger, _ = record_of(tmp_path, "run-2")
    runs.check_no_overlapping_run(older, WORK)
    with pytest.raises(Refused):
        runs.check_no_overlapping_run(younger, WORK)


@pytest.fixture
def another_run(tmp_path: Path) -> Iterator[int]:
    """A run of the sample's first query is active in OUTPUT; its process, a real one that is alive."""
    process = subprocess.Popen(["sleep", "600"])
    record_of(
        tmp_path / "out", "20200101T000000-abcdef", runs.claimed_images("sdxl", [0], [("xt", 4)]), model_type="sdxl"
    )
    path = tmp_path / "out" / "runs" / "20200101T000000-abcdef.json"
    give_process(path, process.pid)
    yield process.pid
    process.kill()
    process.wait()


def sample_into(output: Path, **flags) -> Generate:
    return Generate(
        json_file=str(SAMPLE),
        output_base_path=str(output),
        model_path="tiny",
        max_inference_steps=4,
        save_steps=("4",),
        num_prompts=1,
        **flags,
    )


def test_generate_begins_no_work_that_another_run_does(another_run, tmp_path):
    with pytest.raises(
        Refused, match=rf"run still active \(process {another_run} on .* and it generates query 0 too; wait"
    ):
        generate.generate(sample_into(tmp_path / "out"))
    left = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*"))
    other = "20200101T000000-abcdef"
    assert left == [".staging", f".staging/{other}", "runs", f"runs/{other}.json"]


@pytest.mark.parametrize("flags", [{"force": True}, {"query_ids": (1, 2)}])
def test_a_run_begins_alongside_another_by_force_or_with_other_work(another_run, tmp_path, flags):
    job = generate.prepare(sample_into(tmp_path / "out", **flags))
    generate._begin(job, job.output.writer(runs.new_id()))
    assert len(runs.active_runs(job.output)) == 2


def test_a_run_is_dead_when_its_process_is(tmp_path):
    files, _ = record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    with subprocess.Popen(["sleep", "60"]) as child:
        give_process(path, child.pid)
        assert len(runs.active_runs(files.output)) == 1
        age(path)  # it may be stopped, or its disk: the process is there
        assert len(runs.active_runs(files.output)) == 1
        child.kill()
    age(path, 0)
    assert runs.active_runs(files.output) == []


@pytest.mark.parametrize("changed", ["started", "boot", "namespace"])
def test_a_number_that_is_another_process_now_proves_nothing(tmp_path, changed):
    """Not even this process's own number, as in a container that was killed and started again."""
    files, _ = record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    mine = json.loads(path.read_text())["process"]
    give_process(path, os.getpid(), process={**mine, changed: "another"})
    assert len(runs.active_runs(files.output)) == (changed != "started")  # then only whether it changes can tell
    age(path)
    assert runs.active_runs(files.output) == []


@pytest.mark.parametrize(("seconds", "alive"), [(110, True), (125, False)])
@pytest.mark.parametrize("heartbeat", ["2020-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00"])
def test_a_run_of_another_host_is_dead_when_its_record_has_not_changed_for_two_minutes(
    tmp_path, seconds, alive, heartbeat
):
    """By the clock that stamps the file: what the other host's clock says does not matter."""
    files, _ = record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    give_process(path, 1, host="another", heartbeat_at=heartbeat)
    age(path, seconds)
    assert bool(runs.active_runs(files.output)) == alive


def test_a_record_of_a_run_that_ended_long_ago_is_dead_whoever_has_its_number(tmp_path):
    """As written before records told more than a pid; process 1 is another user's, and lives."""
    files, _ = record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    path.write_text(json.dumps({"run_id": "run-1", "state": "running", "host": platform.node(), "pid": 1}))
    age(path)
    assert runs.active_runs(files.output) == []


def test_a_live_process_of_another_user_is_alive(tmp_path):
    """Root may look at every process, so it asks as another user whether this one lives."""
    files, _ = record_of(tmp_path, "run-1")
    (record,) = runs.read_all(files.output)
    if os.geteuid():
        pytest.skip("only root can ask as another user")
    ask = (
        "import os; from ray_app.index import runs\n"
        "try: os.setuid(65534)\n"
        "except OSError as error: print('skip', error)\n"
        f"else: print(runs.is_alive({record!r}))"
    )
    answer = run_python(ask).strip()
    if answer.startswith("skip"):
        pytest.skip(f"root can't become another user here: {answer}")
    assert answer == "True"


def test_a_record_goes_on_changing_while_its_run_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BEAT_SECONDS", 0.05)
    files, record = record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    record.begin()
    for _ in range(2):
        age(path)
        wait_for("a heartbeat", lambda: path.stat().st_mtime > time.time() - 1000, 10)
    record.end("complete")
    age(path)
    time.sleep(0.3)
    assert path.stat().st_mtime < time.time() - 1000  # and no longer
    assert runs.read_all(files.output)[0]["state"] == "complete"


def elsewhere(tmp_path, monkeypatch) -> Path:
    """The record of a younger run's older rival, of another host, written just now."""
    monkeypatch.setattr(runs, "WATCH_SECONDS", 1.0)
    record_of(tmp_path, "run-1")
    path = tmp_path / "runs" / "run-1.json"
    give_process(path, 1, host="another")
    return path


def test_a_run_elsewhere_is_watched_and_its_work_taken_over_if_its_record_stands_still(tmp_path, monkeypatch, capsys):
    path = elsewhere(tmp_path, monkeypatch)
    files, _ = record_of(tmp_path, "run-2")
    runs.check_no_overlapping_run(files, WORK)
    assert capsys.readouterr().err == (
        f"proxyqueue: {path}: checking for 1 s whether this run is still active (process 1 on another)\n"
    )
    assert json.loads(path.read_text())["state"] == "died"


def test_a_run_elsewhere_whose_record_changes_is_left_its_work(tmp_path, monkeypatch):
    path = elsewhere(tmp_path, monkeypatch)
    files, _ = record_of(tmp_path, "run-2")
    beat = threading.Timer(0.3, lambda: give_process(path, 1, host="another", heartbeat_at="later"))
    beat.start()
    with pytest.raises(Refused, match="run still active"):
        runs.check_no_overlapping_run(files, WORK)
    beat.join()
    assert json.loads(path.read_text())["state"] == "running"


def test_a_run_in_another_container_of_the_same_host_name_lives(tmp_path):
    """A real pid namespace: its process 1 is none of ours, and ours with that number is not it."""
    beat = (
        "import sys, time; from ray_app.index import runs; from ray_app.output.open import open_output\n"
        f"writer = open_output({str(tmp_path)!r}).writer('run-1')\n"
        "runs.Record(writer).beat(); print('beaten', flush=True); sys.stdin.read()"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", beat]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as there:
        assert there.stdin
        assert there.stdout
        assert there.stderr
        if there.stdout.readline() != "beaten\n":
            pytest.skip(f"no pid namespace can be made here: {there.stderr.read()}")
        files, _ = record_of(tmp_path, "run-2")
        files.output.staging("run-1").mkdir(parents=True, exist_ok=True)
        assert runs.mark_dead_runs(files) == []
        assert "run-1" in files.output.folders(".staging")
        there.stdin.close()


def test_the_dead_are_marked_and_their_staging_removed(tmp_path):
    ghost = subprocess.Popen(["sleep", "60"])
    for run_id, pid in (("run-1", ghost.pid), ("run-2", os.getpid())):
        files, _ = record_of(tmp_path, run_id)
        give_process(tmp_path / "runs" / f"{run_id}.json", pid)
        (files.output.staging(files.run_id) / "unfinished").write_bytes(b"half")
    ghost.kill()
    ghost.wait()
    for orphan, seconds in (("run-0", 11), ("run-9", 4)):  # the second may be of a run that begins just now
        (tmp_path / ".staging" / orphan).mkdir()
        os.utime(tmp_path / ".staging" / orphan, (time.time() - seconds,) * 2)
    (tmp_path / "runs" / "notes.json").write_text("not a record")
    mine, _ = record_of(tmp_path, "run-3")
    assert runs.mark_dead_runs(mine) == ["run-1"]
    assert mine.output.folders(".staging") == ["run-2", "run-3", "run-9"]
    assert [record["state"] for record in runs.read_all(mine.output)] == ["died", "running", "running"]


@pytest.mark.slow
def test_two_drivers_on_one_output(tmp_path):
    """The same work is refused while a run is active, another share runs alongside, --force leaves one row per key."""
    flags = "--model_path tiny --max_inference_steps 4 --save_steps 1 4 --img_per_prompt 8 --num_workers 1 --gpu_num 2"
    command = ["generate", "--json_file", str(SAMPLE), *flags.split(), "--output_base_path", "out"]
    first = start_cli(*command, "--idx", "0", cwd=tmp_path, program=PACED)
    wait_for("the first run's first image", lambda: read_tree(tmp_path / "out"), 60)
    second = run_cli(*command, "--idx", "0", cwd=tmp_path, program=PACED)
    assert second.returncode == 2
    assert f"run still active (process {first.pid} on " in second.stderr
    advice = "wait for it, take other --idx or --query_ids, or pass --force\n"
    assert f" and it generates query 0 too; {advice}" in second.stderr
    other_share = start_cli(*command, "--idx", "1", cwd=tmp_path, program=PACED)
    forced = run_cli(*command, "--idx", "0", "--force", cwd=tmp_path, program=PACED)
    for process in (first, other_share):
        process.communicate(timeout=120)
    assert (first.returncode, other_share.returncode, forced.returncode) == (0, 0, 0)
    assert check_all_images_exist(tmp_path / "out") == 6 * 5 * 8 * 2 == len(read_tree(tmp_path / "out"))
    assert not (tmp_path / "out" / ".staging").exists()
    assert sorted(record["state"] for record in runs.read_all(open_output(str(tmp_path / "out")))) == ["complete"] * 3
