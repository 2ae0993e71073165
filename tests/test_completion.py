"""Completion in a real bash; the scripts of zsh and fish are checked by these shells where they are installed."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

from ray_app.cli import COMMANDS, main

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
eval "$(complete -p proxyqueue | sed -E 's/complete -F (\\w+) .*/\\1/')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Writes the script of a shell to a file, once."""
    folder = tmp_path_factory.mktemp("completion")

    def write(shell: str) -> Path:
        path = folder / shell
        if not path.exists():
            with path.open("w") as file, contextlib.redirect_stdout(file):
                assert main(["completion", shell]) == 0
        return path

    return write


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["gene"], {"generate"}),
        (["generate", "--json"], {"--json_file"}),
        (["generate", "--model_type", ""], {"sdxl", "flux"}),
        (["query", "--preset", "s"], {"steps", "shared_references"}),
        (["verify", "--rep"], {"--repair"}),
        ([""], {*COMMANDS, "-h", "--help"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(words, completed, script):
    command = ["bash", "--norc", "-c", COMPLETE, "bash", str(script("bash")), "proxyqueue", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stderr, set(done.stdout.split())) == ("", completed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_read_their_script(shell, script):
    path = script(shell)
    assert "convergence" in path.read_text()
    if not shutil.which(shell):
        pytest.skip(f"no {shell} on this machine")
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
