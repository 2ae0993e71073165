"""Storage and layout: whole files or none, nothing outside OUTPUT, stale caches."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app.errors import Refused
from ray_app.index import runs
from ray_app.output import layout, retry
from ray_app.output.open import open_output
from tests.conftest import ROOT, obeying_permissions


@pytest.fixture
def files(tmp_path):
    return open_output(str(tmp_path / "out")).writer("run-1")


def test_a_reader_of_the_tree_never_sees_an_unfinished_file(files):
    """A file is looked at all the while it is written again and again, large, in two contents."""
    contents = [bytes([number]) * 3_000_000 for number in (1, 2)]
    files.write("step/combined/a.jpg", contents[0])
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.update((path.name, path.read_bytes()) for path in (files.output.root / "step/combined").iterdir())

    looker = threading.Thread(target=look)
    looker.start()
    for number in range(40):
        files.write("step/combined/a.jpg", contents[number % 2])
    stop.set()
    looker.join()
    assert seen <= {("a.jpg", content) for content in contents}


def test_a_write_that_fails_leaves_nothing(files):
    def broken(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_with("step/combined/a.jpg", broken)
    assert [path for path in files.output.root.rglob("*") if path.is_file()] == []
    files.output.remove_staging("run-1")
    assert not (files.output.root / ".staging").exists()


def test_a_full_disk_is_waited_for_and_said_once(small_disk, capsys):
    files = open_output(str(small_disk)).writer("run-waits")
    ballast = small_disk / "ballast"
    for _ in range(2):
        ballast.write_bytes(bytes(2_500_000))
        waiting = threading.Timer(0.5, ballast.unlink)
        waiting.start()
        files.write("step/combined/a.jpg", bytes(1_000_000))
        waiting.join()
        assert files.output.file_sizes("step") == {"combined/a.jpg": 1_000_000}
        (files.output.root / "step/combined/a.jpg").unlink()
    said = f"proxyqueue: {small_disk}/step/combined/a.jpg: No space left on device; retrying for 15 seconds\n"
    assert capsys.readouterr().err == said


def test_retries_end_once_and_for_all(small_disk, monkeypatch):
    monkeypatch.setattr(retry, "PAUSES", (0.1, 0.2))
    files = open_output(str(small_disk)).writer("run-ends")
    for seconds, low in ((0.3, True), (0.3, False)):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"can't be written: No space left on device: '.*/disk/a'"):
            files.write("a", bytes(4_000_000))
        assert (time.monotonic() - started > seconds) == low
        files.write("b", b"fits")  # and gives no new retries
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["b"]


def test_what_cannot_pass_is_not_waited_for(files, capsys):
    files.write("a", b"")
    started = time.monotonic()
    with pytest.raises(OSError, match=r"can't be written: .*/out/a is a file: '.*/out/a/b/c'"):
        files.write("a/b/c", b"")
    assert time.monotonic() - started < retry.PAUSES[0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("moment", ["before the first write", "between two writes"])
def test_an_output_that_is_unmounted_is_not_created_again(small_disk, moment):
    files = open_output(str(small_disk)).writer("run")
    files.begin()
    if moment == "between two writes":
        files.write("step/combined/a.jpg", b"1")
    subprocess.run(["umount", small_disk], check=True)
    with pytest.raises(OSError, match=r"/disk/.staging/run no longer exists: it was removed, renamed or unmounted"):
        files.write("step/combined/b.jpg", b"2")
    assert list(small_disk.iterdir()) == []


def test_a_folder_removed_under_way_is_made_again(files):
    files.write("step/combined/a.jpg", b"1")
    (files.output.root / "step/combined/a.jpg").unlink()
    (files.output.root / "step/combined").rmdir()
    files.write("step/combined/b.jpg", b"2")
    assert files.output.file_sizes("step") == {"combined/b.jpg": 1}


def test_staging_of_another_run_is_left_alone(files):
    other = open_output(str(files.output.root)).writer("run-2")
    files.write("a", b"")
    other.write("b", b"")
    files.output.remove_staging("run-1")
    assert other.output.staging("run-2").exists()
    assert not files.output.staging("run-1").exists()


def test_feature_caches_of_a_step_are_removed_and_nothing_else(files):
    for name in ("aug_features_x.npz", "combined/source_features_y.npz", "combined/a.jpg", "notes.npz"):
        files.write(f"proxy_images_sdxl_step1/{name}", b"1")
    files.write("proxy_images_sdxl_step4/aug_features_x.npz", b"1")
    assert files.output.remove_feature_caches("proxy_images_sdxl_step1") == 2
    left = sorted(path.name for path in files.output.root.rglob("*") if path.is_file())
    assert left == ["a.jpg", "aug_features_x.npz", "notes.npz"]


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    output = open_output(str(tmp_path / "file" / "out"))
    for attempt in (output.check_writable, output.writer("run").begin):
        with pytest.raises(Refused, match=r"--output_base_path .*file/out: can't be written: "):
            attempt()


def test_asking_whether_it_can_be_written_makes_nothing(tmp_path):
    open_output(str(tmp_path / "a" / "b")).check_writable()
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=250))
def test_no_plain_name_leaves_its_folder(tmp_path_factory, name):
    if layout.why_not_plain(name) is None:
        folder = tmp_path_factory.getbasetemp()
        path = (folder / layout.image_file("combined", name, 3, "jpg")).resolve()
        assert path.parent == (folder / "combined").resolve()
        assert len(path.name.encode()) <= 255
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        path.unlink()


def test_names_of_the_tree():
    assert layout.step_folder("sdxl", "xt", 4) == "proxy_images_sdxl_step4"
    assert layout.step_folder("flux", "x0", 16) == "proxy_images_flux_x0_step16"
    assert layout.image_file(layout.query_folder(680, False), "297636", 0, "jpg") == (
        "combined_query680/combined_297636_0.jpg"
    )
    assert layout.index_part("sdxl", "r", 2) == "index/model=sdxl/part-r-000002.parquet"


@pytest.mark.parametrize("error", [None, OSError("disk"), KeyboardInterrupt()])
def test_staging_is_removed_on_every_exit_path(tmp_path, error):
    output = open_output(str(tmp_path / "out"))

    def half(path):
        path.write_bytes(b"half")
        (path.parent / "of another process").write_bytes(b"half")
        if error:
            raise error

    with contextlib.suppress(OSError, KeyboardInterrupt), output.writing("run-1") as writer:
        writer.write_with("step/a.jpg", half)
    assert sorted(path.name for path in output.root.rglob("*") if path.is_file()) == ([] if error else ["a.jpg"])
    assert not (output.root / ".staging").exists()


def test_what_a_process_stages_a_moment_after_a_run_was_cut_short_is_removed_too(tmp_path):
    output = open_output(str(tmp_path / "out"))
    late = threading.Timer(0.3, lambda: output.writer("run-1")._stage(output.staging("run-1") / "x", Path.touch))
    with contextlib.suppress(KeyboardInterrupt), output.writing("run-1", others_write=True):
        late.start()
        raise KeyboardInterrupt
    late.join()
    assert list(output.root.iterdir()) == []


def test_a_writer_killed_before_the_rename_leaves_the_old_file_and_the_next_run_cleans_up(tmp_path):
    output = open_output(str(tmp_path / "out"))
    output.writer("run-1").write("a", b"old")
    code = (
        "import os, signal, sys; from ray_app.output.open import open_output\n"
        "def write(path): path.write_bytes(b'new'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_output(sys.argv[1]).writer('run-2').write_with('a', write)"
    )
    killed = subprocess.run([sys.executable, "-c", code, output.url], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert output.read("a") == b"old"
    (staged,) = output.staging("run-2").iterdir()
    assert staged.read_bytes() == b"new"
    an_hour_ago = time.time() - 3600
    for path in (staged, staged.parent):
        os.utime(path, (an_hour_ago, an_hour_ago))
    with output.writing("run-3") as writer:
        runs.mark_dead_runs(writer)
    assert not output.staging("run-2").exists()


def test_a_name_that_a_folder_has_taken_is_told(files):
    files.write("a/b", b"")
    with pytest.raises(OSError, match=r"can't be written: Is a directory: '.*/out/a'"):
        files.write("a", b"")
    assert list(files.output.staging("run-1").iterdir()) == []


def test_no_permission_is_told_and_not_waited_for(files):
    files.write("a/b", b"")
    (files.output.root / "a").chmod(0o500)
    code = (
        "import sys; from ray_app.output.open import open_output\n"
        "try: open_output(sys.argv[1]).writer('run-1').write('a/c', b'')\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    command = [*obeying_permissions(), sys.executable, "-c", code, files.output.url]
    started = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == f"{files.output.root}/a/c can't be written: Permission denied\n", result.stderr
    assert time.monotonic() - started < sum(retry.PAUSES)
    assert list(files.output.staging("run-1").iterdir()) == []
