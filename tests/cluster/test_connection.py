"""Joining a running cluster by --address and by RAY_ADDRESS; addresses where none is."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from ray_app.cluster import connection
from ray_app.cluster.ray_workarounds import PROJECT
from ray_app.errors import Refused
from ray_app.work_queue import queue
from ray_app.work_queue.in_flight import InFlightTracker
from tests.conftest import SAMPLE, read_tree, run_cli
from tests.support import clusters, processes
from tests.support.outputs import check_all_images_exist

DRAW = ("--json_file", str(SAMPLE), "--model_path", "tiny", "--limit", "1", "--num_prompts", "1", "--num_workers", "1",
        "--max_inference_steps", "1", "--save_steps", "1")  # fmt: skip


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_running_cluster_is_joined_and_left_running(ray_local, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    flags = ["--json_file", str(SAMPLE), "--model_path", "tiny", "--max_inference_steps", "2", "--limit", "1"]
    flags += ["--num_workers", "1", "--address", address]
    result = run_cli("generate", *flags, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert result.returncode == 0, result.stderr
    assert check_all_images_exist(tmp_path / "output") == len(read_tree(tmp_path / "output")) == 5
    host, port = address.split(":")
    socket.create_connection((host, int(port)), 5).close()
    assert ray.get(ray.remote(num_cpus=0)(lambda: "answers").remote(), timeout=60) == "answers"


def test_ray_address_is_honoured(nowhere, tmp_path):
    flags = ["--json_file", str(SAMPLE), "--model_path", "tiny"]
    result = run_cli("generate", *flags, cwd=tmp_path, RAY_ADDRESS=nowhere)
    assert result.returncode == 2
    assert f"RAY_ADDRESS {nowhere}: no Ray cluster answers there" in result.stderr


def test_an_address_where_nothing_listens_is_refused_at_once(nowhere):
    with pytest.raises(Refused, match=f"--address {nowhere}: no Ray cluster answers there"):
        connection._check_answers(nowhere)


def test_the_address_of_a_cluster_that_is_gone_is_refused_with_the_file_that_names_it(nowhere):
    """In a process of its own: Ray would find that of this one."""
    noted = Path(os.environ["RAY_TMPDIR"]) / "stale"
    (noted / "ray").mkdir(parents=True)
    (noted / "ray" / "ray_current_cluster").write_text(nowhere)
    ask = (
        "from ray._private import services; services.find_gcs_addresses = set\n"  # others may run on this machine
        "from ray_app import errors\n"
        "from ray_app.cluster import connection\n"
        "try: connection._check_answers('auto')\n"
        "except errors.Refused as refused: print(refused)"
    )
    environment = {**os.environ, "RAY_TMPDIR": str(noted)}
    said = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith(
        f"--address auto ({nowhere}, as {noted}/ray/ray_current_cluster says; remove the file if that cluster is gone):"
        " no Ray cluster answers there"
    )


def test_an_ipv6_address_is_understood():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        assert connection._check_answers(f"[::1]:{listening.getsockname()[1]}") == "::1"


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265"])
def test_an_address_of_another_kind_is_refused_with_what_to_give(address):
    with pytest.raises(Refused, match=f"--address {address}: is not an address that a driver can join; give HOST:PORT"):
        connection._check_answers(address)


def test_a_dashboards_address_in_the_environment_is_named(tmp_path):
    result = run_cli("generate", *DRAW, cwd=tmp_path, RAY_ADDRESS="http://127.0.0.1:8265")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith(
        "proxyqueue: RAY_ADDRESS http://127.0.0.1:8265: is not an address that a driver can join"
    )


def test_another_version_of_ray_is_told(ray_local, tmp_path):
    import ray

    flags = [*DRAW, "--address", ray.get_runtime_context().gcs_address]
    code = f"import ray; ray.__version__ = '2.1.0'; from ray_app import cli; exit(cli.main({['generate', *flags]}))"
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert f"Version mismatch: The cluster was started with: Ray: {ray.__version__}" in result.stderr
    assert "Ray: 2.1.0" in result.stderr
    assert "no Ray cluster answers" not in result.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RAY_TMPDIR": "/tmp/" + "long" * 25},
            "the paths of its sockets would have over 107 bytes; set RAY_TMPDIR to",
        ),
        (
            {"RAY_TMPDIR": "/proc/nothing"},
            "/proc/nothing: No such file or directory; set RAY_TMPDIR to a folder that can",
        ),
    ],
)
def test_a_ray_that_can_not_be_started_here(environment, message, tmp_path):
    result = run_cli("generate", *DRAW, cwd=tmp_path, **environment)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert result.stderr.startswith(f"proxyqueue: Ray can't be started here: {message}")


def test_a_container_with_too_little_memory_is_told_before_the_system_ends_the_run(tmp_path):
    """Its limit is a file of the kernel's: another one is mounted over it."""
    limits = [Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory.max")]
    limit = next((path for path in limits if path.exists()), None)
    if limit is None:
        pytest.skip("no limit of memory can be read here")
    (tmp_path / "limit").write_text("200000000")
    command = f'mount --bind {tmp_path / "limit"} {limit} && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", command, "sh"]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    command = [*within, sys.executable, "-m", "ray_app", "generate", *DRAW]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "this machine or container has 200 MB of memory; give it 800 MB at least" in result.stderr


def said(stderr: str) -> list[str]:
    """What a command said, without the lines of progress that it shows every ten seconds."""
    return [line for line in stderr.splitlines() if line.startswith("proxyqueue: ")]


def as_nobody() -> tuple[list[str], dict[str, str]]:
    """A command's first words that run Python as nobody, and what its environment needs; the interpreter of a virtual
    environment may lie where only root reads, so the system's is tried too."""
    # a shell between them: setpriv itself may still run what nobody may not
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", 'exec "$@"', "sh"]
    installed = os.pathsep.join([os.environ["PYTHONPATH"], sysconfig.get_path("purelib")])
    of_the_system = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, of_the_system):
        command, needs = [*nobody, python], {"PYTHONPATH": installed}
        tried = [*command, "-c", "import ray_app, ray, torch"]
        if not os.geteuid() and not subprocess.run(tried, env=needs, cwd="/", capture_output=True).returncode:
            return command, needs
    pytest.skip("root can't become a user here who can read the installation")


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/", None])
def test_a_home_that_can_not_be_written_does_not_prevent_a_run(home, tmp_path):
    """As with `docker run --user`. HOME is not set at all, too."""
    python, needs = as_nobody()
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "RAY_TMPDIR")}
    with tempfile.TemporaryDirectory(prefix="n", dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        environment = {**kept, **needs, "RAY_TMPDIR": folder, **({"HOME": home} if home else {})}
        command = [*python, "-m", "ray_app", "generate", *DRAW, "--output_base_path", f"{folder}/out"]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "images           1 written" in result.stdout


@pytest.mark.slow
def test_modules_in_the_working_directory_are_not_the_workers(tmp_path):
    """A numpy.py of the user's, a broken torch.py."""
    (tmp_path / "numpy.py").write_text("x = 1")
    (tmp_path / "torch.py").write_text("def broken(:")
    # as the installed command: `python -m` looks into the working directory itself
    code = "import sys; sys.path.remove(''); from ray_app import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", *DRAW]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert check_all_images_exist(tmp_path / "output") == 1


@pytest.mark.slow
def test_a_broken_installation_of_a_worker_ends_the_run_with_its_words(tmp_path):
    """On the path before the real one."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    path = os.pathsep.join([str(tmp_path / "broken"), os.environ["PYTHONPATH"]])
    result = run_cli("generate", *DRAW, cwd=tmp_path, PYTHONPATH=path)
    (line,) = said(result.stderr)
    assert result.returncode == 2
    assert line.endswith("tiny: can't be loaded: OSError: libcudart.so.12: cannot open shared object file")


def test_a_run_does_not_wait_for_ever_for_its_first_process(ray_local, monkeypatch):
    import ray

    tracker = ray.remote(num_cpus=0, num_gpus=9)(InFlightTracker).remote()  # has no place
    monkeypatch.setattr(queue, "FIRST_SECONDS", 1.0)
    with pytest.raises(Refused, match=r"^no Ray process started here within 1 s; ") as raised:
        queue.check_comes_up(tracker)
    assert "the last one said: " in str(raised.value) or "/session_" in str(raised.value)


@pytest.mark.slow
def test_a_node_on_which_no_process_comes_up_is_named(tmp_path):
    """Its workers end before they have begun: Ray starts them again and again."""
    ends = "import os, sys\nif any('default_worker' in word for word in sys.orig_argv): os._exit(1)\n"
    (tmp_path / "sitecustomize.py").write_text(ends)
    code = (
        "import sys; from ray_app.cli import main; from ray_app.work_queue import queue\n"
        "queue.FIRST_WORKER_SECONDS = queue.LOOK_SECONDS = 5.0; sys.exit(main(sys.argv[1:]))"
    )
    path = os.pathsep.join([str(tmp_path), str(PROJECT)])
    with clusters.cluster("--num-cpus=0") as two:
        two.start(f"--address={two.address}", "--num-cpus=1", PYTHONPATH=path)
        flags = ["--address", two.address, "--output_base_path", str(tmp_path / "out")]
        command = [sys.executable, "-c", code, "generate", *DRAW, *flags]
        environment = {**os.environ, **clusters.auth(False)}
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr
            told = next(line for line in run.stderr if line.startswith("proxyqueue: "))
            run.send_signal(signal.SIGINT)
            left = run.stderr.read()
    assert run.returncode == 130, left
    assert "no worker has started in 5 s: no process comes up on node " in told


@pytest.mark.slow
def test_a_node_without_the_project_is_named(tmp_path):
    """Its own mounts hide the sources from it."""
    hide = f'mount -t tmpfs none {PROJECT / "ray_app"} && exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    with clusters.cluster("--num-cpus=0") as two:
        two.start(f"--address={two.address}", "--num-cpus=1", within=within, PYTHONPATH=str(PROJECT))
        flags = ["--address", two.address, "--model_path", "tiny", "--output_base_path", str(tmp_path / "out")]
        doctor = ["doctor", *flags]
        processes.wait_for(
            "doctor sees both nodes",
            lambda: run_cli(*doctor, **clusters.auth(False)).stdout.count(importlib.metadata.version("ray")) == 2,
            90,
        )
        found = run_cli(*doctor, **clusters.auth(False))
        drawn = run_cli("generate", *DRAW, *flags, **clusters.auth(False))
    problem = "actors can't start there: ModuleNotFoundError: No module named 'ray_app.generation'; install"
    assert found.returncode == 1
    assert problem in found.stdout
    (line,) = said(drawn.stderr)
    assert drawn.returncode == 2
    assert problem in line
