"""The commands that are run from a clone: flags, exit codes and signals as those of `proxyqueue`."""

import re
import shlex
import signal

import pytest

from jobs.benchmarks.options import Scale, Speed
from jobs.training.train import Train
from ray_app.cli import run_module
from tests.conftest import ROOT, run_cli, start_cli
from tests.processes import wait_for

COMMANDS = {"jobs.benchmarks.speed": Speed, "jobs.benchmarks.scale": Scale, "jobs.training.train": Train}


@pytest.mark.parametrize("page", ["README.md", "BENCHMARKS.md"])
def test_commands_that_are_shown_parse(page):
    """Every command line that a page shows is one that the program accepts."""
    text = (ROOT / page).read_text()
    lines = re.findall(r"python -m (jobs\.(?:benchmarks|training)\.[^`\n]+)", text)
    assert lines
    for line in lines:
        module, *arguments = shlex.split(line)
        assert run_module(module, COMMANDS[module], lambda options: 0, arguments) == 0, line


@pytest.mark.parametrize("module", COMMANDS)
def test_help_names_the_command(module, tmp_path):
    result = run_cli("--help", cwd=tmp_path, program=module)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m {module} [-h]")


def test_a_wrong_flag_is_one_line(capsys):
    assert run_module("jobs.benchmarks.speed", Speed, lambda options: 0, ["--rounds", "x"]) == 2
    assert capsys.readouterr() == (
        "",
        "proxyqueue: --rounds x: takes INT (see python -m jobs.benchmarks.speed --help)\n",
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_is_one_line(number, tmp_path):
    """While a measurement's process is at work; nothing is left of it."""
    flags = "--parts plan --plan_slots 2000000 --work_dir work"
    process = start_cli(*flags.split(), cwd=tmp_path, program="jobs.benchmarks.scale")
    annotations = tmp_path / "work" / "measured" / "prompts.json"
    began = wait_for(annotations.exists, 60)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert began, err
    assert (process.returncode, out, err) == (130, "", "proxyqueue: interrupted\n")
    assert not list((tmp_path / "work").iterdir())
    assert not (tmp_path / "scale.json").exists()
