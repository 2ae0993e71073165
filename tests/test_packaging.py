"""The wheel has what a user runs, and not what is run from a clone."""

import subprocess
import sys
import zipfile

from tests.conftest import ROOT

BUILD = "import setuptools; setuptools.setup()"


def test_the_wheel_has_neither_benchmarks_nor_training(tmp_path):
    command = [sys.executable, "-c", BUILD, "-q", "egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path]
    built = subprocess.run(
        [*command, "bdist_wheel", "--dist-dir", tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"ray_app/cli.py", "jobs/generate.py", "actors/tiny_sdxl/model_index.json"} <= set(names)
    assert {"actors/tiny_clip/model.safetensors", "ray_app/emoji_cir/images.parquet"} <= set(names)
    assert "ray_app/emoji_cir/OFL.txt" in names
    assert (ROOT / "jobs/benchmarks/speed.py").is_file()
    assert not [name for name in names if name.startswith(("jobs/benchmarks", "jobs/training", "tests"))]
