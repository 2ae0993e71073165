"""Files and folders that are there whole or not at all, on every way on which writing them can fail."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_app.errors import Refused
from ray_app.files import whole_file, whole_folder
from tests.conftest import ROOT, obeying_permissions


def write(path: Path, data: bytes = b"new") -> None:
    with whole_file(path, "--output") as staged:
        staged.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    with whole_file(path, "--output") as staged:
        staged.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.csv"]
    (tmp_path / "b.csv").touch()
    assert path.stat().st_mode == (tmp_path / "b.csv").stat().st_mode


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), whole_file(path, "--output") as staged:
        staged.write_text(b"no text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.csv"]


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    (tmp_path / "taken").mkdir()
    for path, why in (("taken", "is a folder"), ("gone/a.csv", "its folder does not exist")):
        with pytest.raises(Refused, match=f"^--output {tmp_path / path}: {why}$"):
            write(tmp_path / path)


def test_a_disk_that_fills_up(small_disk):
    path = small_disk / "a.csv"
    path.write_bytes(b"old")
    with pytest.raises(Refused, match=f"^--output {path}: can't be written: No space left on device$"):
        write(path, bytes(5_000_000))
    assert path.read_bytes() == b"old"
    assert names(small_disk) == ["a.csv"]


def test_a_disk_that_turns_read_only(small_disk):
    path = small_disk / "a.csv"
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(Refused, match="can't be written: Read-only file system"):
        write(path)
    with pytest.raises(Refused, match=f"^--export_path {small_disk / 'x'}: can't be written: Read-only file system$"), \
            whole_folder(small_disk / "x", "--export_path"):  # fmt: skip
        pass


def test_a_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    code = (
        "import sys; from pathlib import Path; from ray_app import errors, files\n"
        "try:\n    with files.whole_file(Path(sys.argv[1]), '--output') as staged: staged.write_bytes(b'')\n"
        "except errors.Refused as refused: print(refused)"
    )
    path = tmp_path / "closed" / "a.csv"
    command = [*obeying_permissions(), sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"--output {path}: can't be written: Permission denied\n", result.stderr


def test_a_folder_that_goes_meanwhile(tmp_path):
    place = tmp_path / "place"
    place.mkdir()

    def write_into_a_folder_that_goes() -> None:
        with whole_file(place / "a.csv", "--output") as staged:
            staged.write_bytes(b"new")
            shutil.rmtree(place)

    with pytest.raises(Refused, match="can't be written: No such file or directory"):
        write_into_a_folder_that_goes()


def test_without_a_flag_the_systems_error_comes_through(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "no" / "a") as staged:
        staged.write_bytes(b"")


@pytest.mark.parametrize("folder", [False, True])
def test_a_process_that_is_killed_before_the_end_leaves_the_old_one(folder, tmp_path):
    path = tmp_path / "a"
    if not folder:
        path.write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from ray_app import files\n"
        f"with files.whole_{'folder' if folder else 'file'}(Path(sys.argv[1]), '--output') as staged:\n"
        f"    ({'staged / chr(120)' if folder else 'staged'}).write_bytes(b'new')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old" if not folder else not path.exists()


def test_a_folder_takes_its_place_at_the_end(tmp_path):
    path = tmp_path / "deep" / "x"
    with whole_folder(path, "--export_path") as staged:
        (staged / "a").write_bytes(b"new")
        assert not path.exists()
    assert names(path) == ["a"]
    assert names(path.parent) == ["x"]
    with pytest.raises(Refused, match=f"^--export_path {path}: exists already; name a new or empty folder$"), \
            whole_folder(path, "--export_path"):  # fmt: skip
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(path.parent / "y", "--export_path"):
        raise ZeroDivisionError
    assert names(path.parent) == ["x"]
