"""Jobs submitted over HTTP: what is refused, what is sent and shown, and, to a real cluster, the way a user does."""

import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobStatus

from ray_app.cli import main
from ray_app.submission import job_package, job_server
from ray_app.submission.job_package import PACKAGES
from ray_app.submission.submit import check_job, passed_on
from tests.conftest import ROOT, SAMPLE, obeying_permissions, read_tree, run_cli, start_cli
from tests.support.clusters import Cluster, Tunnel, auth, cluster, pids
from tests.support.dashboard import Dashboard, dashboard
from tests.support.outputs import check_all_images_exist
from tests.support.processes import environments, wait_for

TINY = ["--model_path", "tiny", "--max_inference_steps", "4", "--save_steps", "1", "4"]
SECRET = "hf_abcdefghijklmnop"
LOGGERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
"""Those that Ray's client of jobs writes to; submit silences them."""


@pytest.fixture(scope="module")
def jobs() -> Iterator[Cluster]:
    with cluster("--num-cpus=2") as started:
        yield started


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of a user who has installed the project: annotations, no sources."""
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "test1.json")
    return folder


def submit(jobs: Cluster, here: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**auth(False), "HF_TOKEN": SECRET, **environment}
    return run_cli("submit", "--address", jobs.dashboard, *arguments, cwd=here, **environment)


def generate(output: Path, *flags: str) -> list[str]:
    return ["--", "generate", *TINY, "--output_base_path", str(output), *flags]


def copy_packages(checkout: Path) -> Path:
    """A checkout of the project's packages."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__"))
    return checkout


def list_files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def names_shipped(board: Dashboard, uri: str) -> list[str]:
    """The files of one upload."""
    with zipfile.ZipFile(io.BytesIO(board.packages[uri.removeprefix("gcs://")])) as archive:
        return sorted(archive.namelist())


@pytest.fixture
def board(here, monkeypatch) -> Iterator[Dashboard]:
    """A dashboard for a shell that has the token, in the folder with the annotations."""
    for name in passed_on(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.01)
    monkeypatch.chdir(here)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    with dashboard() as running:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", running.address)
        yield running
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_what_a_job_is_sent_and_what_is_shown_of_it(board, here, capsys):
    (here / "elsewhere").mkdir()
    (here / "test1.json").rename(here / "elsewhere" / "deeper.json")
    board.log = [f"the token is {SECRET}\n", "24 images\n"]
    board.end = {"status": JobStatus.FAILED, "driver_exit_code": 3}
    flags = [*TINY, "--output_base_path", "/mnt/out", "--json_file", str(here / "elsewhere" / "deeper.json")]
    assert main(["submit", "--", "generate", *flags]) == 3
    (sent,) = board.submitted
    assert sent["entrypoint"] == f"python -m jobs.generate {' '.join(flags)} --json_file deeper.json"
    assert sent["runtime_env"]["env_vars"] == {"HF_TOKEN": SECRET, "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert names_shipped(board, sent["runtime_env"]["working_dir"]) == ["deeper.json"]
    modules = [names_shipped(board, uri) for uri in sent["runtime_env"]["py_modules"]]
    assert {"actors/generator.py", "jobs/generate.py", "ray_app/cli.py"} <= set(itertools.chain(*modules))
    out, err = capsys.readouterr()
    assert re.fullmatch(
        rf"job +{sent['submission_id']}\nships +the sources in .*, and deeper.json\n"
        r"passes on +HF_TOKEN\nthe token is \*\*\*\n24 images\n",
        out,
    )
    assert err == ""


def test_a_detached_job_is_not_followed(board, capsys):
    board.log = ["never shown\n"]
    assert main(["submit", "--detach", "--", "generate", *TINY, "--output_base_path", "/mnt/out"]) == 0
    job = board.submitted[0]["submission_id"]
    assert capsys.readouterr().out.endswith(
        f"follow it        proxyqueue submit --address {board.address} --attach {job}\n"
        f"stop it          proxyqueue submit --address {board.address} --stop {job}\n"
        f"see all          proxyqueue submit --address {board.address} --list\n"
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "expected", "said"),
    [
        (JobStatus.SUCCEEDED, 0, None, 0, ""),
        (JobStatus.SUCCEEDED, None, None, 0, ""),
        (JobStatus.FAILED, 3, "exit code 3", 3, ""),
        (JobStatus.FAILED, -9, "killed", 137, ""),
        (JobStatus.STOPPED, None, None, 130, "proxyqueue: j: was stopped; rerun the same command to resume\n"),
        (JobStatus.FAILED, None, f"no node for\n{SECRET}", 1, "proxyqueue: j: was lost: no node for ***\n"),
    ],
)
def test_the_exit_code_is_the_jobs(status, exit_code, message, expected, said, board, capsys):
    board.log = ["24 images\n"]
    board.add("j", status=status, driver_exit_code=exit_code, message=message)
    assert main(["submit", "--attach", "j"]) == expected
    assert capsys.readouterr() == ("24 images\n", said)


def test_jobs_are_listed_without_secrets(board, capsys):
    board.add("first", f"python -m jobs.generate --x {SECRET}", status=JobStatus.FAILED, driver_exit_code=2)
    board.add("second", status=JobStatus.RUNNING, start_time=1_700_000_100_000)
    assert main(["submit", "--list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["job", "state", "started", "exit", "command"]
    assert re.fullmatch(r"first +FAILED +\S+ \S+ +2 +python -m jobs.generate --x \*\*\*", lines[0])
    assert re.fullmatch(r"second +RUNNING +\S+ \S+ +python -m jobs.generate", lines[1])
    assert len(lines) == 2


def test_a_job_is_stopped(board, capsys):
    board.add("j", status=JobStatus.RUNNING)
    assert main(["submit", "--stop", "j"]) == 0
    assert capsys.readouterr() == ("j: stopped\n", "")


def test_a_job_that_the_cluster_does_not_know(board, capsys):
    assert main(["submit", "--attach", "nobody"]) == 2
    unknown = f"--address {board.address}: no such job: nobody; proxyqueue submit --list names them"
    assert capsys.readouterr() == ("", f"proxyqueue: {unknown}\n")


def test_what_a_cluster_says_of_its_failures_is_shown_without_secrets(board, monkeypatch, capsys):
    board.fault = f"{SECRET} is wrong"
    assert main(["submit", "--list"]) == 2
    assert capsys.readouterr() == (
        "", f"proxyqueue: --address {board.address}: Request failed with status code 500: *** is wrong.\n"
    )  # fmt: skip
    board.fault, board.fault_after_log = "", f"{SECRET} is wrong"
    board.add("j", status=JobStatus.RUNNING)
    monkeypatch.setattr(job_server, "LOST_SECONDS", -1.0)
    assert main(["submit", "--attach", "j"]) == 2
    assert capsys.readouterr().err == (
        f"proxyqueue: {board.address}: the connection is lost, the job may still be running"
        " (Request failed with status code 500: *** is wrong.)\n"
    )


@pytest.mark.slow
def test_a_job_is_checked_shipped_and_followed_and_its_exit_code_is_the_commands(jobs, here, tmp_path):
    elsewhere = here / "elsewhere" / "deeper.json"
    elsewhere.parent.mkdir()
    (here / "test1.json").rename(elsewhere)
    done = submit(jobs, here, *generate(tmp_path / "out", "--dry_run", "--json_file", str(elsewhere)))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^job +proxyqueue-\S+\nships +the sources in .*, and deeper.json\n", done.stdout)
    assert "passes on        HF_TOKEN\n" in done.stdout
    assert "images           60 requested, 0 existing, 60 to generate" in done.stdout
    refused = submit(
        jobs, here, *generate(tmp_path / "out", "--max_inference_steps", "2000", "--json_file", str(elsewhere))
    )
    assert (refused.returncode, refused.stderr) == (2, "")
    assert "proxyqueue: --max_inference_steps 2000: " in refused.stdout
    listed = submit(jobs, here, "--list")
    assert re.search(
        r"^proxyqueue-\S+ +SUCCEEDED +\S+ \S+ +0 +python -m jobs.generate --model_path tiny", listed.stdout, re.M
    )
    assert re.search(r"^proxyqueue-\S+ +FAILED +\S+ \S+ +2 +python", listed.stdout, re.M)
    assert SECRET not in done.stdout + refused.stdout + listed.stdout + listed.stderr
    unknown = submit(jobs, here, "--attach", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr == (
        f"proxyqueue: --address {jobs.dashboard}: no such job: nobody; proxyqueue submit --list names them\n"
    )


@pytest.mark.slow
def test_ctrl_c_detaches_stop_stops_and_the_same_command_resumes(jobs, here, tmp_path):
    """The variables reach driver and workers; the index is true after the stop."""
    output = tmp_path / "out"
    asked = generate(output, "--img_per_prompt", "16")
    environment = {**auth(False), "HF_TOKEN": SECRET, "AWS_REGION": "eu-north-1", "AWS_PROFILE": "mine"}
    following = start_cli("submit", "--address", jobs.dashboard, *asked, cwd=here, **environment)
    try:
        wait_for("a part of the index", lambda: list(output.rglob("*.parquet")), 120)
        processes = {*pids("jobs.generate --model_path"), *pids("ray::MapWorker")}
        variables = [found for pid, found in environments() if pid in processes]
        own = [found for found in variables if f"HF_TOKEN={SECRET}" in found and "RAY_JOB_STOP_WAIT_TIME_S=60" in found]
        assert len(own) >= 3  # a driver, two workers
        assert all("AWS_REGION=eu-north-1" in found and "AWS_PROFILE=mine" not in found for found in own)
    finally:
        following.send_signal(signal.SIGINT)
        out, err = following.communicate(timeout=60)
    assert following.returncode == 130, err
    assert "Traceback" not in out + err
    job = re.search(r"^job +(\S+)$", out, re.M)[1]  # type: ignore[index]
    assert f"detached; {job} keeps running" in err
    assert f"--attach {job}" in err
    assert f"--stop {job}" in err
    assert re.search(rf"^{job} +RUNNING", submit(jobs, here, "--list").stdout, re.M)
    stopped = submit(jobs, here, "--stop", job)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"{job}: stopped\n", "")
    rows = check_all_images_exist(output)
    assert 0 < rows < 960
    assert not (output / ".staging").exists()
    again = submit(jobs, here, "--detach", *asked)
    assert again.returncode == 0, again.stderr
    job = re.search(r"--attach (\S+)$", again.stdout, re.M)[1]  # type: ignore[index]
    attached = submit(jobs, here, "--attach", job)
    assert attached.returncode == 0, attached.stdout
    assert f"{rows:,} existing" in attached.stdout
    assert f"{960 - rows:,} written, {rows:,} skipped" in attached.stdout
    assert re.search(r"\d+ of 960 images, .* actors up", out + attached.stdout)
    assert check_all_images_exist(output) == len(read_tree(output)) == 960
    assert SECRET not in out + err + attached.stdout + again.stdout


@pytest.mark.slow
def test_a_tunnel_that_breaks_costs_no_line_and_shows_none_twice(jobs, here, tmp_path):
    tunnel = Tunnel(int(jobs.dashboard.rpartition(":")[2]))
    asked = generate(tmp_path / "out", "--num_workers", "1")
    following = start_cli("submit", "--address", f"http://127.0.0.1:{tunnel.port}", *asked, cwd=here, **auth(False))
    lines = []
    for line in following.stdout or []:
        lines.append(line)
        if line.startswith(("steps to run", "images  ")):
            tunnel.cut()
    following.wait(60)
    tunnel.close()
    assert following.returncode == 0
    said = " ".join(line.split()[0] for line in lines if not line[0].isdigit())
    assert said == "job ships passes Running queries slots images denoises steps images denoises wall record"


@pytest.mark.slow
def test_failed_prompts_give_the_jobs_exit_code(jobs, here, tmp_path, models):
    (here / "test1.json").write_text('[{"id": 1, "reference_img_id": "a", "multi_gpt-3.5_opt": ["fine", "a ~"]}]')
    flags = ["--model_path", models["sdxl_poison"], "--device", "cpu", "--height", "64", "--width", "64"]
    flags += ["--num_workers", "1"]
    done = submit(jobs, here, *generate(tmp_path / "out", *flags, "--num_prompts", "2"))
    assert done.returncode == 3, done.stdout
    assert "failed; 0 of truncated prompts" in done.stdout


@pytest.mark.slow
def test_ray_job_submit_does_the_same(jobs, tmp_path):
    entrypoint = ["python", "-m", "jobs.generate", *TINY, "--json_file", "ray_app/sample.json", "--limit", "1"]
    entrypoint += ["--num_workers", "1"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", jobs.dashboard]
    done = subprocess.run(
        [*command, "--working-dir", ".", "--", *entrypoint, "--output_base_path", str(tmp_path / "out")],
        cwd=ROOT, env={**os.environ, **auth(False)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_all_images_exist(tmp_path / "out") == len(read_tree(tmp_path / "out")) == 10


@pytest.mark.slow
def test_a_cluster_that_wants_a_token(here, tmp_path):
    with cluster("--num-cpus=2", token=True) as locked:
        without = submit(locked, here, "--list")
        assert (without.returncode, without.stdout) == (2, "")
        assert without.stderr.startswith(
            f"proxyqueue: --address {locked.dashboard}: requires a token; set RAY_AUTH_MODE=token"
        )
        wrong = submit(locked, here, "--list", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 32)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith(f"proxyqueue: --address {locked.dashboard}: rejects this machine's token; set")
        done = submit(locked, here, *generate(tmp_path / "out", "--limit", "1", "--num_workers", "1"), **auth(True))
        assert done.returncode == 0, done.stdout + done.stderr
        assert check_all_images_exist(tmp_path / "out") == 10


REFUSED = {
    "submit": "no job is named; write it after --: proxyqueue submit -- generate …flags",
    "submit --detach": "no job is named; write it after --: proxyqueue submit -- generate …flags",
    "submit --list --stop x": "--stop --list: give one of them",
    "submit --list -- generate": "--list -- …: give one of them",
    "submit -- verify": "verify: can't be submitted; only generate can: proxyqueue submit -- generate …flags",
    "submit --working_dir none -- generate": "--working_dir none: no such folder",
    "submit -- generate --idx x": "--idx x: takes INT (see proxyqueue generate --help)",
    "submit -- generate --batch_size 0": "--batch_size 0: must be at least 1",
    "submit -- generate": "--output_base_path ./output: would be lost with the job's own folder; name an absolute path"
    " on the cluster, or s3://bucket/prefix",
    "submit -- generate --output_base_path /o --json_file none.json": "--json_file none.json: no such file in HERE"
    " (--working_dir); name one here, which is shipped, or an absolute path of the cluster",
    "submit -- generate --output_base_path /o --query_ids 99": "--query_ids 99: no usable query with this id in the"
    " annotations",
    "submit -- generate --output_base_path /o --model_path ./sdxl": "./sdxl: models are not shipped; name a hub id, or"
    " an absolute path that every node has",
    "submit --address ray://head:10001 --list": "--address ray://head:10001: not the address of a dashboard,"
    " http://HEAD:8265",
    "submit --address http://127.0.0.1:1 --list": "--address http://127.0.0.1:1: no dashboard answers there: [Errno"
    " 111] Connection refused; for a cluster of cluster.yaml run `ray dashboard cluster.yaml` in another terminal",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_refused_before_anything_is_sent(command, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    assert main(command.split()) == 2
    assert capsys.readouterr() == ("", f"proxyqueue: {REFUSED[command].replace('HERE', str(here))}\n")


def test_a_checkout_ships_its_own_packages_and_nothing_else_and_once(board, here, tmp_path):
    checkout = copy_packages(tmp_path / "checkout")
    (checkout / "ray_app" / "changed.py").write_text("changed = True")
    sources = [name for name in list_files(checkout) if not name.startswith(("jobs/benchmarks/", "jobs/training/"))]
    assert (checkout / "jobs/benchmarks/speed.py").is_file()
    for clutter in (".git/config", ".venv/lib/x.py", "output/index/part.parquet", "weights/unet.safetensors",
                    "ray_app/__pycache__/x.pyc", "ray_app/.secret", "tests/test_x.py"):  # fmt: skip
        (checkout / clutter).parent.mkdir(parents=True, exist_ok=True)
        (checkout / clutter).write_text("x")
    command = ["submit", "--detach", "--working_dir", str(checkout), "--", "generate", *TINY]
    command += ["--output_base_path", "/mnt/out", "--json_file", str(here / "test1.json")]
    assert main(command) == 0
    uploaded = dict(board.packages)
    (here / "test1.json").touch()
    (checkout / "ray_app" / "changed.py").touch()
    assert main(command) == 0
    assert board.uploads == len(uploaded) == 4
    first, second = (sent["runtime_env"] for sent in board.submitted)
    assert first == second
    assert names_shipped(board, first["working_dir"]) == ["test1.json"]
    shipped = itertools.chain.from_iterable(names_shipped(board, uri) for uri in first["py_modules"])
    assert sorted(shipped) == sources


def test_a_folder_without_packages_ships_the_installed_ones(here):
    assert job_package.find_packages(here) == [ROOT / package for package in PACKAGES]


def test_more_than_ray_takes_is_refused_with_what_to_do(board, capsys):
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    assert job_server.MAX_BYTES == DASHBOARD_CLIENT_MAX_SIZE
    board.max_bytes = 2**10
    assert main(["submit", "--", "generate", *TINY, "--output_base_path", "/mnt/out"]) == 2
    assert capsys.readouterr().err == (
        f"proxyqueue: --address {board.address}: the annotations or a package's folder exceed Ray's limit of 100 MiB"
        " for an upload; put annotations where the cluster reads them, other files out of the packages' folders\n"
    )
    assert not board.submitted


def test_a_file_that_can_not_be_read_is_named(board, here, tmp_path):
    checkout = copy_packages(tmp_path / "checkout")
    locked = checkout / "ray_app" / "locked.py"
    locked.touch(mode=0o000)
    command = [*obeying_permissions(), sys.executable, "-m", "ray_app", "submit", "--working_dir", str(checkout), "--"]
    command += ["generate", *TINY, "--output_base_path", "/mnt/out", "--json_file", str(here / "test1.json")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"proxyqueue: {locked}: Permission denied\n")


@pytest.mark.slow
def test_the_shipped_packages_are_those_that_run_and_annotations_may_be_the_clusters(jobs, here, tmp_path):
    checkout = copy_packages(tmp_path / "checkout")
    (checkout / "ray_app" / "__init__.py").write_text('__version__ = "9.9.9"\n')
    flags = ["--json_file", str(here / "test1.json"), "--limit", "1", "--num_workers", "1"]
    done = submit(jobs, checkout, *generate(tmp_path / "out", *flags))
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (tmp_path / "out" / "runs").iterdir()
    assert json.loads(record.read_text())["versions"]["proxyqueue"] == "9.9.9"
    elsewhere = submit(jobs, checkout, *generate(tmp_path / "out", "--json_file", "/not/on/this/machine.json"))
    assert elsewhere.returncode == 2, elsewhere.stdout + elsewhere.stderr
    assert "proxyqueue: /not/on/this/machine.json: " in elsewhere.stdout


@pytest.mark.parametrize(
    ("given", "shipped", "added"),
    [
        ("./test1.json", "HERE/test1.json", []),
        ("HERE/test1.json", "HERE/test1.json", ["--json_file", "test1.json"]),
        ("../outside.json", "HERE/../outside.json", ["--json_file", "outside.json"]),
        (".hidden/.test2.json", "HERE/.hidden/.test2.json", ["--json_file", "test2.json"]),
        ("/not/on/this/machine.json", None, []),
    ],
)
def test_where_annotations_come_from(given, shipped, added, here):
    (here / ".hidden").mkdir()
    shutil.copy(SAMPLE, here / ".hidden" / ".test2.json")
    shutil.copy(SAMPLE, here.parent / "outside.json")
    flags = ["--json_file", given.replace("HERE", str(here)), "--output_base_path", "/o", "--model_path", "tiny"]
    arguments, annotations = check_job(("generate", *flags), here)
    assert arguments == [*flags, *added]
    expected = shipped and Path(os.path.abspath(shipped.replace("HERE", str(here))))
    assert annotations == expected


def test_variables_that_name_this_machines_files_stay_here():
    shell = {"HF_TOKEN": "t", "AWS_REGION": "r", "AWS_PROFILE": "p", "AWS_CONFIG_FILE": "f", "HF_HOME": "h",
             "AWS_ENDPOINT_URL": "u", "AWS_SHARED_CREDENTIALS_FILE": "f"}  # fmt: skip
    assert list(passed_on(shell)) == ["AWS_ENDPOINT_URL", "AWS_REGION", "HF_TOKEN"]
