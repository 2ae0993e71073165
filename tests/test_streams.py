"""Standard streams that fail: nobody reads, the disk under them is full, they are closed or take ASCII only."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PACED, ROOT, SAMPLE, read_tree
from tests.support.outputs import parts, write_images

PROGRAM = f"{shlex.quote(sys.executable)} -m"
TROUBLES = {
    "nobody reads": "{ COMMAND; echo $? >code; } 2>&1 | true",
    "full disk": "COMMAND >/dev/full 2>&1; echo $? >code",
    "closed": "COMMAND >&- 2>&- <&-; echo $? >code",
}


def exit_code(command: str, shell: str, cwd: Path) -> int:
    """Of a command within a line of shell script, which writes it to the file `code`."""
    subprocess.run(["bash", "-c", shell.replace("COMMAND", command)], cwd=cwd, check=False, timeout=100)
    return int((cwd / "code").read_text())


@pytest.mark.parametrize("trouble", TROUBLES)
def test_work_is_done_to_its_end_without_its_streams(trouble, tmp_path):
    for run_id in ("run-1", "run-2"):
        write_images(tmp_path / "out", run_id, [int(run_id[-1])])
    assert exit_code(f"{PROGRAM} ray_app compact --output_base_path out", TROUBLES[trouble], tmp_path) == 0
    assert len(parts(tmp_path / "out")) == 1


@pytest.mark.slow
def test_a_run_continues_when_nobody_reads_it_any_more(tmp_path):
    flags = f"--json_file {SAMPLE} --model_path tiny --max_inference_steps 4 --save_steps 4 --limit 1 --num_workers 1"
    command = f"{PROGRAM} {PACED} generate {flags} --output_base_path out"
    assert exit_code(command, "{ COMMAND; echo $? >code; } 2>&1 | head -1", tmp_path) == 0
    assert len(read_tree(tmp_path / "out")) == 5
    (record,) = (tmp_path / "out" / "runs").glob("*.json")
    assert json.loads(record.read_text())["state"] == "complete"


def test_what_only_prints_ends_quietly_when_nobody_reads(tmp_path):
    write_images(tmp_path / "out", "run-1", range(3))
    command = f"{PROGRAM} ray_app query --output_base_path out 'SELECT * FROM images, range(10000)' --format csv 2>err"
    assert exit_code(command, "{ COMMAND; echo $? >code; } | head -1", tmp_path) == 0
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("generate --help", "usage: proxyqueue generate"),
        ("query --output_base_path out 'SELECT '\"'鸟'\"' AS 名'", "?"),
    ],
)
def test_letters_that_an_encoding_lacks_are_replaced(arguments, printed, tmp_path):
    write_images(tmp_path / "out", "run-1", [1])
    done = subprocess.run(
        ["bash", "-c", f"{PROGRAM} ray_app {arguments}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert printed in done.stdout
