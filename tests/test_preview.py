"""The verb `preview`: one prompt's steps as png files, in this process."""

from pathlib import Path

import pytest
from PIL import Image

from ray_app.cli import main

FLAGS = ["--prompt", "a dog on a beach", "--model_path", "tiny", "--max_inference_steps", "4", "--save_steps", "1", "2"]


def preview(folder: Path, *flags: str) -> dict[str, bytes]:
    """The files of a preview by their names."""
    assert main(["preview", *FLAGS, "--output_dir", str(folder), *flags]) == 0
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_preview_saves_each_step_and_the_last_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", *FLAGS]) == 0
    names = "step_01.png, step_02.png, step_04.png, final.png"
    lines = [f"test_output/{model}_multistep: {names}\n" for model in ("sdxl", "flux")]
    assert capsys.readouterr() == ("".join(lines), "")
    for model in ("sdxl", "flux"):
        folder = tmp_path / "test_output" / f"{model}_multistep"
        assert sorted(path.name for path in folder.iterdir()) == sorted(names.split(", "))
        assert (folder / "final.png").read_bytes() == (folder / "step_04.png").read_bytes()
        assert (folder / "step_01.png").read_bytes() != (folder / "step_04.png").read_bytes()
        assert Image.open(folder / "final.png").size == (64, 64)


@pytest.mark.parametrize("model", ["sdxl", "flux"])
def test_x0_shows_the_clean_image_that_the_noisy_one_will_become(model, tmp_path):
    """The last step has no noise left: there both are the same."""
    noisy = preview(tmp_path / "xt", "--model", model)
    clean = preview(tmp_path / "x0", "--model", model, "--snapshot", "x0")
    assert noisy.keys() == clean.keys()
    first, last = f"{model}_multistep/step_01.png", f"{model}_multistep/step_04.png"
    assert clean[last] == noisy[last]
    assert clean[first] != noisy[first]
