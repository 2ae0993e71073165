"""The command as a user runs it: a process of its own, the scripts' flags, exit codes, interruption."""

import importlib.metadata
import re
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

import ray_app
from jobs.training import demo_scores
from ray_app import cli, machine
from ray_app.cli import COMMANDS, main
from ray_app.generation.options import Demo
from tests.conftest import PACED, ROOT, SAMPLE, read_tree, run_cli, run_python, start_cli
from tests.support.outputs import check_all_images_exist
from tests.support.processes import comes_true


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_scripts_own_spelling_works_from_a_folder_with_their_defaults(tmp_path):
    (tmp_path / "test1.json").write_text(SAMPLE.read_text())
    scripts_flags = "--model_type sdxl --num_prompts 2 --img_per_prompt 1 --max_inference_steps 4 --save_steps 1 2 4"
    result = run_cli(
        "generate", *scripts_flags.split(), "--guidance_scale", "0.0", "--idx", "1", "--gpu_num", "4",
        "--sdxl_path", "tiny", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0
    assert all(" images/s, " in line for line in result.stderr.splitlines())
    assert result.stdout.startswith("queries          1\nslots            2 (2 unique)\n")
    assert sorted(read_tree(tmp_path / "output")) == [
        f"proxy_images_sdxl_step{step}/combined/combined_100102_{k}.jpg" for step in (1, 2, 4) for k in (0, 1)
    ]


def test_help_imports_nothing_heavy(helps):
    heavy = {"torch", "ray", "diffusers", "transformers", "pyarrow", "numpy", "duckdb"}
    assert not heavy & {*helps["imported"]}
    assert all("proxyqueue" in helps[command] for command in ("", *COMMANDS))


def test_importing_the_application_imports_no_torch():
    modules = [f"ray_app.{path.stem}" for path in (ROOT / "ray_app").glob("*.py") if path.stem != "__main__"]
    code = f"import sys, {', '.join(modules)}; assert not {{'torch', 'diffusers', 'ray'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wrong_argument_gets_one_line_on_any_terminal(encoding, tmp_path):
    result = run_cli("generate", "--idx", "x", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "proxyqueue: --idx x: takes INT (see proxyqueue generate --help)\n"


@pytest.mark.slow
def test_an_interrupted_run_leaves_a_true_index_and_goes_on(tmp_path):
    """Ctrl-C, then SIGTERM, each as soon as the run has committed a part; then to the end."""
    flags = "--model_path tiny --max_inference_steps 4 --save_steps 1 4 --img_per_prompt 10 --output_base_path out"
    command = ["generate", "--json_file", str(SAMPLE), *flags.split()]
    committed = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start_cli(*command, cwd=tmp_path, program=PACED)
        before = len(list(tmp_path.rglob("*.parquet")))
        committed_again = comes_true(lambda before=before: len(list(tmp_path.rglob("*.parquet"))) > before, 240)
        process.send_signal(number)
        assert committed_again, f"no part of the index in 240 s: {process.communicate(timeout=60)}"
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert err.splitlines()[-1] == "proxyqueue: interrupted; rerun the same command to resume"
        assert "Traceback" not in out + err
        rows = check_all_images_exist(tmp_path / "out")
        assert committed < rows < 600
        committed = rows
        assert not (tmp_path / "out" / ".staging").exists()
        assert not [name for name in read_tree(tmp_path / "out") if not name.endswith(".jpg")]
    result = run_cli(*command, cwd=tmp_path, program=PACED)
    assert result.returncode == 0, result.stderr
    assert f"{committed:,} existing" in result.stdout
    assert check_all_images_exist(tmp_path / "out") == len(read_tree(tmp_path / "out")) == 600


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_ends_with_the_answer_and_does_nothing_twice(tmp_path):
    result = run_cli("demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "proxyqueue_demo"
    assert [path.name for path in tmp_path.iterdir()] == ["proxyqueue_demo"]
    images = [name for name in read_tree(out) if name.startswith("proxy_images_")]
    assert len(images) == 2 * 32 * 2 * 5 * 2
    assert {"images.png", "evaluation/answer.png", "evaluation/index.html"} <= {
        path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()
    }
    assert re.search(r"^step  sdxl xt  sdxl x0  flux xt  flux x0$", result.stdout, re.MULTILINE)
    assert len(result.stdout.splitlines()) < 50
    text = demo_scores.TABLE.read_text()
    recorded = {answer_key(row): row for row in demo_scores.from_csv(text)}
    scores = pq.read_table(out / "evaluation/evaluation.parquet").to_pylist()
    own = [row for row in scores if demo_scores.is_recorded(row) and row["compared_with"] is None]
    assert len(own) == len([row for row in recorded.values() if row["compared_with"] is None])
    assert all(recorded[answer_key(row)]["low"] <= row["value"] <= recorded[answer_key(row)]["high"] for row in own)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run_cli("demo", cwd=tmp_path)
    assert "nothing to generate: all 1,280 images exist, with their vectors and scores" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert again.stdout.split("\n\n", 1)[1] == result.stdout.split("\n\n", 1)[1]
    next_commands = [
        line.strip() for line in result.stdout.splitlines() if line.startswith("  ") and " --output" in line
    ]
    assert len(next_commands) == 3
    for command in next_commands:
        tried = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert tried.returncode == 0, tried.stderr


def answer_key(row):
    return tuple(row[name] for name in ("model", "snapshot", "step", "method", "compared_with"))


def test_a_submitted_jobs_entry_point_is_generate():
    result = subprocess.run(
        [sys.executable, "-m", "jobs.generate", "--json_file", "/none"], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (
        2,
        "proxyqueue: /none: no such file; name the annotations with --json_file\n",
    )


def test_no_arguments_show_where_to_begin_and_help_every_command(capsys, helps):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    shown = [line.split()[1] for line in lines if line.startswith("  proxyqueue ")]
    assert len(shown) == 6
    assert set(shown) < set(COMMANDS)
    assert set(re.findall(r"^  (\w+)  ", helps[""], flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", ["generate", "query"])
def test_only_a_command_that_resumes_says_so_when_it_is_interrupted(command, monkeypatch, capsys):
    def interrupted(options: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setitem(cli.COMMANDS, command, (Demo, interrupted))
    assert main([command]) == 130
    hint = {"generate": "; rerun the same command to resume", "query": ""}
    assert capsys.readouterr().err == f"proxyqueue: interrupted{hint[command]}\n"


def test_version_says_what_is_installed_without_importing_it():
    code = (
        "import sys; from ray_app.cli import main; main(['--version'])\n"
        "assert not {'torch', 'ray', 'diffusers', 'pyarrow'} & sys.modules.keys()"
    )
    lines = run_python(code).splitlines()
    installed = {"torch": importlib.metadata.version("torch"), "ray": importlib.metadata.version("ray")}
    versions = dict(line.split() for line in lines)
    assert lines[0].split() == ["proxyqueue", ray_app.__version__]
    assert list(versions) == ["proxyqueue", "python", "torch", "CUDA", "ray", "diffusers"]
    assert {name: versions[name] for name in installed} == installed


@pytest.mark.parametrize(("cuda", "shown"), [("None", "none"), ("'13.0'", "13.0")])
def test_cuda_is_that_which_torch_was_built_for(cuda, shown, tmp_path, monkeypatch):
    package = tmp_path / "torch"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert machine.cuda_version() == shown
