"""The commands that are run from a clone: flags, exit codes and signals as those of `proxyqueue`."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobs.benchmarks.features import Measure
from jobs.benchmarks.gpu.__main__ import Measurement
from jobs.benchmarks.options import EvaluateScale, Scale, Speed
from jobs.training.demo_scores import DemoScores
from jobs.training.emoji_cir import EmojiCir
from jobs.training.train import Train
from jobs.training.train_clip import TrainClip
from ray_app.cli import run_module
from tests.conftest import ROOT, run_cli
from tests.support.processes import are_gone, children, comes_true, wait_for

COMMANDS = {
    "jobs.benchmarks.speed": Speed,
    "jobs.benchmarks.scale": Scale,
    "jobs.benchmarks.evaluate": EvaluateScale,
    "jobs.benchmarks.features": Measure,
    "jobs.benchmarks.gpu": Measurement,
    "jobs.training.train": Train,
    "jobs.training.train_clip": TrainClip,
    "jobs.training.emoji_cir": EmojiCir,
    "jobs.training.demo_scores": DemoScores,
}


@pytest.mark.parametrize("page", ["README.md", "docs/gpus.md", "docs/tiny-models.md", "BENCHMARKS.md"])
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


@pytest.fixture
def measuring(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """A benchmark with a process at work, in a group of their own, as in a terminal."""
    flags = "--parts plan --plan_slots 5000000 --work_dir work"
    command = subprocess.Popen(
        [sys.executable, "-m", "jobs.benchmarks.scale", *flags.split()],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    at_work = comes_true((tmp_path / "work" / "measured").is_dir, 60) and comes_true(lambda: helpers(command.pid), 60)
    yield command
    command.kill()
    command.communicate()
    assert at_work


def helpers(command: int) -> list[int]:
    return children(command, "multiprocessing.spawn")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["as in a terminal", "to the command alone"])
def test_an_interrupted_benchmark_ends_at_once_with_one_line(measuring, send, number, tmp_path):
    processes = helpers(measuring.pid)
    send(measuring.pid, number)
    out, err = measuring.communicate(timeout=30)
    assert (measuring.returncode, out, err) == (130, "", "proxyqueue: interrupted\n")
    assert are_gone(processes)
    assert not list((tmp_path / "work").iterdir())
    assert not (tmp_path / "scale.json").exists()


def test_no_process_outlives_a_benchmark_that_is_killed(measuring):
    processes = helpers(measuring.pid)
    measuring.kill()
    wait_for("the benchmark's processes end", lambda: are_gone(processes), 20)
