"""The disk under a real run fills, turns read-only, is locked or goes away: what is said, and going on afterwards."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_app.errors import OK, REFUSED
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from tests.conftest import PACED, SAMPLE, obeying_permissions, read_tree
from tests.support.outputs import check_all_images_exist
from tests.support.processes import comes_true
from tests.support.synthetic import SyntheticWorker

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

FLAGS = {
    "json_file": str(SAMPLE),
    "model_path": "tiny",
    "max_inference_steps": 4,
    "save_steps": ("1", "4"),
    "num_prompts": 2,
    "img_per_prompt": 14,
    "image_format": "png",
}
BEGUN, IMAGES = 1 * 2 * 14 * 2, 6 * 2 * 14 * 2
RESUME = "; rerun the same command to resume"


def options(output: Path, **flags) -> Generate:
    return Generate(output_base_path=str(output), **FLAGS, **flags)


def start(output: Path, prefix: list[str]) -> subprocess.Popen[str]:
    """The run as a process of its own, with a Ray of its own."""
    flags = [[f"--{name}", *([value] if isinstance(value, str | int) else value)] for name, value in FLAGS.items()]
    arguments = [str(part) for flag in flags for part in flag]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", PACED, "generate", *arguments, "--output_base_path", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_into(trouble: Callable[[], object], output: Path, prefix: list[str], tried_again: bool = False) -> str:
    """Break the disk as soon as the run has written some images; its last line, after it ended as refused."""
    process = start(output, prefix)
    begun = comes_true(lambda: len(list(output.rglob("*.png"))) >= BEGUN + 40 or process.poll() is not None, 240)
    trouble()
    out, err = process.communicate(timeout=240)
    assert begun, f"fewer than 40 images in 240 s: {err}"
    assert process.returncode == REFUSED, err
    assert "Traceback" not in out + err
    tries = err.count("; retrying for 15 seconds")
    assert (tries in (1, 2)) if tried_again else (tries == 0)  # of all writers together once, and of the driver
    return err.splitlines()[-1]


@pytest.fixture(scope="module")
def begun(ray_local, tmp_path_factory) -> Path:
    """An output with the first query's images."""
    output = tmp_path_factory.mktemp("begun") / "out"
    assert generate(options(output, limit=1), SyntheticWorker) == OK
    assert len(read_tree(output)) == BEGUN
    return output


@pytest.fixture(scope="module")
def undisturbed(begun, tmp_path_factory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    shutil.copytree(begun, output)
    assert generate(options(output), SyntheticWorker) == OK
    return read_tree(output)


@pytest.fixture
def output(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def disk(begun, small_disk) -> Path:
    """A disk with an output that has begun, and room for some more images."""
    shutil.copytree(begun, small_disk / "out")
    return small_disk


def remount(disk: Path, how: str) -> None:
    """Also against files that are open for writing at the moment."""
    for _ in range(500):
        if not subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode:
            return
        time.sleep(0.01)
    raise AssertionError(f"{disk} can't be remounted {how}")


def check_completes(output: Path, undisturbed: dict[str, bytes]) -> None:
    assert generate(options(output), SyntheticWorker) == OK
    assert read_tree(output) == undisturbed
    assert check_all_images_exist(output) >= IMAGES


def test_a_full_disk(disk, undisturbed):
    output = disk / "out"
    (disk / "other files").write_bytes(bytes(2_000_000))  # of 3 MB: an image takes 4 kB there
    line = run_into(lambda: None, output, [], tried_again=True)
    assert line.startswith(f"proxyqueue: {output}/")
    assert line.endswith(f": can't be written: No space left on device{RESUME}")
    assert BEGUN <= check_all_images_exist(output) < IMAGES
    assert not (output / ".staging").exists()
    remount(disk, "size=64m")
    check_completes(output, undisturbed)
    assert not (output / ".staging").exists()


def test_a_disk_that_turns_read_only(disk, undisturbed):
    remount(disk, "size=64m")
    output = disk / "out"
    line = run_into(lambda: remount(disk, "ro"), output, [])
    assert line.startswith(f"proxyqueue: {output}/")
    assert line.endswith(f": can't be written: Read-only file system{RESUME}")
    assert BEGUN <= check_all_images_exist(output) < IMAGES
    remount(disk, "rw")
    check_completes(output, undisturbed)


def test_permission_taken_away(output, undisturbed):
    """Only of one step's images: the others reach the index, and the record says how the run ended."""
    locked = output / "proxy_images_sdxl_step4" / "combined"
    line = run_into(lambda: locked.chmod(0o500), output, obeying_permissions())
    assert line.startswith(f"proxyqueue: {locked}/combined_")
    assert line.endswith(f".png: can't be written: Permission denied{RESUME}")
    assert BEGUN < check_all_images_exist(output) < IMAGES
    assert not (output / ".staging").exists()
    record = json.loads(max((output / "runs").iterdir()).read_text())
    assert record["state"] == "failed"
    assert record["error"] == line.removeprefix("proxyqueue: ")
    locked.chmod(0o700)
    check_completes(output, undisturbed)


def test_an_output_that_vanishes_is_not_made_again(output, undisturbed):
    elsewhere = output.with_name("elsewhere")
    line = run_into(lambda: output.rename(elsewhere), output, [])
    assert line.startswith(f"proxyqueue: {output}/")
    assert f": can't be written: {output}/.staging/" in line
    assert line.endswith(f" no longer exists: it was removed, renamed or unmounted during the run{RESUME}")
    assert not output.exists()
    elsewhere.rename(output)
    assert BEGUN <= check_all_images_exist(output) < IMAGES
    check_completes(output, undisturbed)
