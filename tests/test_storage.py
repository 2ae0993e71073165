"""Storage and layout: whole files or none, nothing outside OUTPUT, stale caches."""

import subprocess
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_app import layout, patience
from ray_app.errors import Refused
from ray_app.storage import open_storage


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "out"), "run-1")


def test_a_reader_of_the_tree_never_sees_an_unfinished_file(storage):
    """A file is looked at all the while it is written again and again, large, in two contents."""
    contents = [bytes([number]) * 3_000_000 for number in (1, 2)]
    storage.write("step/combined/a.jpg", contents[0])
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.update((path.name, path.read_bytes()) for path in (storage.root / "step/combined").iterdir())

    looker = threading.Thread(target=look)
    looker.start()
    for number in range(40):
        storage.write("step/combined/a.jpg", contents[number % 2])
    stop.set()
    looker.join()
    assert seen <= {("a.jpg", content) for content in contents}


def test_a_write_that_fails_leaves_nothing(storage):
    def broken(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        storage.write_with("step/combined/a.jpg", broken)
    assert [path for path in storage.root.rglob("*") if path.is_file()] == []
    storage.remove_staging()
    assert not (storage.root / ".staging").exists()


def test_a_full_disk_is_waited_for_and_said_once(small_disk, capsys):
    storage = open_storage(str(small_disk), "run-waits")
    ballast = small_disk / "ballast"
    for _ in range(2):
        ballast.write_bytes(bytes(2_500_000))
        waiting = threading.Timer(0.5, ballast.unlink)
        waiting.start()
        storage.write("step/combined/a.jpg", bytes(1_000_000))
        waiting.join()
        assert storage.sizes("step") == {"combined/a.jpg": 1_000_000}
        (storage.root / "step/combined/a.jpg").unlink()
    said = f"proxyqueue: {small_disk}/step/combined/a.jpg: No space left on device; trying again for 15 seconds\n"
    assert capsys.readouterr().err == said


def test_patience_ends_once_and_for_all(small_disk, monkeypatch):
    monkeypatch.setattr(patience, "PAUSES", (0.1, 0.2))
    storage = open_storage(str(small_disk), "run-ends")
    for seconds, low in ((0.3, True), (0.3, False)):
        started = time.monotonic()
        with pytest.raises(OSError, match=r"can't be written: No space left on device: '.*/disk/a'"):
            storage.write("a", bytes(4_000_000))
        assert (time.monotonic() - started > seconds) == low
        storage.write("b", b"fits")  # and gives no new patience
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["b"]


def test_what_cannot_pass_is_not_waited_for(storage, capsys):
    storage.write("a", b"")
    started = time.monotonic()
    with pytest.raises(OSError, match=r"can't be written: .*/out/a is a file: '.*/out/a/b/c'"):
        storage.write("a/b/c", b"")
    assert time.monotonic() - started < patience.PAUSES[0]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("moment", ["before the first write", "between two writes"])
def test_an_output_that_is_unmounted_is_not_written_beside(small_disk, moment):
    storage = open_storage(str(small_disk), "run")
    storage.check_writable(create=True)
    if moment == "between two writes":
        storage.write("step/combined/a.jpg", b"1")
    subprocess.run(["umount", small_disk], check=True)
    with pytest.raises(OSError, match=r"/disk/.staging/run is gone since the run began: removed, renamed or unmounted"):
        storage.write("step/combined/b.jpg", b"2")
    assert list(small_disk.iterdir()) == []


def test_a_folder_removed_under_way_is_made_again(storage):
    storage.write("step/combined/a.jpg", b"1")
    (storage.root / "step/combined/a.jpg").unlink()
    (storage.root / "step/combined").rmdir()
    storage.write("step/combined/b.jpg", b"2")
    assert storage.sizes("step") == {"combined/b.jpg": 1}


def test_staging_of_another_run_is_left_alone(storage):
    other = open_storage(str(storage.root), "run-2")
    storage.write("a", b"")
    other.write("b", b"")
    storage.remove_staging()
    assert other.staging().exists()
    assert not storage.staging().exists()


def test_feature_caches_of_a_step_are_removed_and_nothing_else(storage):
    for name in ("aug_features_x.npz", "combined/source_features_y.npz", "combined/a.jpg", "notes.npz"):
        storage.write(f"proxy_images_sdxl_step1/{name}", b"1")
    storage.write("proxy_images_sdxl_step4/aug_features_x.npz", b"1")
    assert storage.remove_feature_caches("proxy_images_sdxl_step1") == 2
    left = sorted(path.name for path in storage.root.rglob("*") if path.is_file())
    assert left == ["a.jpg", "aug_features_x.npz", "notes.npz"]


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for create in (False, True):
        with pytest.raises(Refused, match=r"--output_base_path .*file/out: can't be written: "):
            open_storage(str(tmp_path / "file" / "out"), "run").check_writable(create)


def test_asking_whether_it_can_be_written_makes_nothing(tmp_path):
    open_storage(str(tmp_path / "a" / "b"), "run").check_writable(create=False)
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
