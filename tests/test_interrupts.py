"""SIGINT and SIGTERM before each change that a command makes: one line, exit code 130, nothing staged; it goes on."""

import signal

import pytest

from ray_app.interrupts import SIGNALS, Interrupts, uninterrupted
from tests.support.outputs import kill_and_repeat, newest_rows, parts, write_images

OUTPUT = ("--output_base_path", "OUTPUT")
COMMANDS = {
    "compact": ("compact", *OUTPUT),
    "clean": ("clean", *OUTPUT, "--model_type", "sdxl", "--steps", "4", "--yes"),
    "clean all": ("clean", *OUTPUT, "--all", "--yes"),
    "verify": ("verify", *OUTPUT, "--repair"),
    "imagefolder": ("export", *OUTPUT, "--format", "imagefolder"),
    "gallery": ("gallery", *OUTPUT),
}


@pytest.mark.parametrize("sent", SIGNALS, ids=lambda sent: sent.name)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_interrupted_says_so_and_goes_on(command, sent, tmp_path):
    output = tmp_path / "out"
    write_images(output, "run-1", range(6))
    write_images(output, "run-2", range(3), text="redrawn")
    if command == "verify":
        rows = newest_rows(output)
        (output / rows[0]["path"]).unlink()
        (output / rows[1]["path"]).write_bytes(b"cut")
        parts(output)[0].with_name("part-bad.parquet").write_bytes(b"no parquet")
    copies = kill_and_repeat(output, tmp_path, *COMMANDS[command], check=lambda output: None, sent=sent)
    whole = tree(tmp_path / "undisturbed")
    assert copies
    for copy in copies:
        assert tree(copy) == whole


def tree(output) -> set[str]:
    """The names of the files, but for those of parts, which have the run's id."""
    files = (path for path in output.rglob("*") if path.is_file() and path.suffix != ".parquet")
    return {path.relative_to(output).as_posix() for path in files}


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut_short():
    done: list[str] = []

    def work() -> None:
        with Interrupts(), uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGTERM)
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["outer"]
    with Interrupts(), uninterrupted():
        done.append("another")  # the signal is not obeyed twice
