"""Images of another torch: recorded in each part, kept by compaction, and one warning that names both versions."""

import json
import shutil
from pathlib import Path

import pytest

from actors import tiny
from ray_app.cli import main
from ray_app.errors import OK
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.index import versions
from ray_app.index.partition import Partition
from ray_app.machine import PIXEL_PACKAGES, pixel_versions
from ray_app.output.open import open_output
from tests.conftest import ROOT, SAMPLE
from tests.support.outputs import TINY_OF_0_1_0, parts, set_hardware, set_versions, write_images
from tests.support.synthetic import SyntheticWorker

RUNS = ("run-1", "run-2")
OLDER = {"torch": "2.12.1", "diffusers": "0.41.0"}
HERE = pixel_versions()


@pytest.fixture
def output(tmp_path) -> Path:
    """Two runs, whose parts say what runs here."""
    write_images(tmp_path, RUNS[0], [0, 1])
    write_images(tmp_path, RUNS[1], [2, 3])
    return tmp_path


def difference(output: Path) -> str | None:
    return versions.describe_difference(versions.read_versions(open_output(str(output)), "sdxl", RUNS))


def test_a_part_has_the_versions_that_it_was_generated_by(output):
    assert Partition.open(open_output(str(output)), "sdxl").versions == [HERE]
    assert set(HERE) == set(PIXEL_PACKAGES)
    assert difference(output) is None


def test_another_version_is_named_with_this_one(output):
    set_versions(parts(output)[0], [HERE | OLDER])
    assert difference(output) == (
        "this output has images of torch 2.12.1, diffusers 0.41.0,"
        f" this run has torch {HERE['torch']}, diffusers {HERE['diffusers']}"
    )


def test_compaction_keeps_the_versions_of_all_parts(output):
    set_versions(parts(output)[0], [HERE | OLDER])
    before = difference(output)
    assert main(["compact", "--output_base_path", str(output)]) == 0
    assert len(parts(output)) == 1
    assert difference(output) == before


def test_compaction_keeps_the_hardware_of_all_parts(output):
    kinds = [{"device": "A"}, {"device": "B"}]
    for part, kind in zip(parts(output), kinds, strict=False):
        set_hardware(part, [kind])
    before = Partition.open(open_output(str(output)), "sdxl").hardware
    assert kinds[0] in before
    compact_output = ["compact", "--output_base_path", str(output)]
    assert main(compact_output) == 0
    assert Partition.open(open_output(str(output)), "sdxl").hardware == before


def test_hardware_that_is_none_is_damage(output):
    set_hardware(parts(output)[0], ["A"])  # type: ignore[list-item]
    assert "its hardware is not hardware" in str(Partition.open(open_output(str(output)), "sdxl").damaged)


def test_versions_that_are_none_are_damage(output):
    set_versions(parts(output)[0], ["2.12.1"])  # type: ignore[list-item]
    assert "its versions are not versions" in str(Partition.open(open_output(str(output)), "sdxl").damaged)


@pytest.mark.usefixtures("ray_local")
def test_a_part_of_0_1_0_has_the_versions_of_its_runs_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tiny, "revision", lambda _: TINY_OF_0_1_0)
    output = Path(shutil.copytree(ROOT / "tests/data/output_0.1.0", tmp_path / "out"))
    (record,) = output.glob("runs/*.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"versions": HERE | OLDER}))
    places = {"json_file": str(SAMPLE), "output_base_path": str(output), "model_path": "tiny", "num_workers": "1"}
    amount = {"limit": 2, "num_prompts": 2, "max_inference_steps": 2, "save_steps": ("1", "2")}
    assert generate(Generate(**places, **amount), SyntheticWorker) == OK
    said = capsys.readouterr()
    assert "4 existing, 4 to generate" in said.out
    assert [line for line in said.err.splitlines() if line.startswith("proxyqueue: ")] == [
        f"proxyqueue: {output}: this output has images of torch 2.12.1, diffusers 0.41.0, this run has torch"
        f" {HERE['torch']}, diffusers {HERE['diffusers']}: the bytes of the images that this run generates may differ"
    ]
    newest = max(output.glob("runs/*.json"))
    assert json.loads(newest.read_text())["versions"].items() >= HERE.items()
