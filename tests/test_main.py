"""What `main` makes of errors that no command handles, and of a reader that has gone."""

import os
import subprocess
import sys

import pytest

from ray_app.cli import main


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"], ["query", "--schema"]])
def test_a_reader_that_has_gone_is_no_error(arguments, unbuffered):
    """As in `proxyqueue query … | head`: whether a print meets it or, where output is buffered, the end."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stdout:
        command = [sys.executable, "-m", "ray_app", *arguments]
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_of_the_system_is_one_line_with_the_file(tmp_path, capsys):
    output = tmp_path / ("x" * 300)
    assert main(["compact", "--output_base_path", str(output)]) == 2
    assert capsys.readouterr() == ("", f"proxyqueue: {output}/index/model=sdxl: can't be read: File name too long\n")


def test_an_error_of_the_system_without_a_file_is_one_line(tmp_path, monkeypatch, capsys):
    """The working folder was removed by somebody else."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["submit", "--", "generate"]) == 2
    assert capsys.readouterr() == ("", "proxyqueue: system: No such file or directory\n")
