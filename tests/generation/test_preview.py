"""The command `preview`: one prompt's steps as png files, in this process."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from actors import tiny
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


def test_an_invalid_image_is_reported_and_not_saved(tmp_path, capsys):
    """A VAE that returns NaN from some step on would give a black image."""
    model = Path(shutil.copytree(tiny.folder("sdxl"), tmp_path / "model"))
    weights = load_file(model / "vae/diffusion_pytorch_model.safetensors")
    weights["decoder.conv_out.bias"].fill_(torch.nan)
    save_file(weights, model / "vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    flags = ["--model", "sdxl", "--model_path", str(model), "--device", "cpu", "--height", "64", "--width", "64"]
    assert main(["preview", *FLAGS, *flags, "--output_dir", str(tmp_path / "out")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        f"proxyqueue: {model}: step 4: NonFinitePixels: the decoded pixels of step 4 are not finite"
    )
    assert not list(tmp_path.rglob("*.png"))


def test_a_scheduler_that_cannot_be_used_is_reported_in_one_line(tmp_path, capsys):
    model = Path(shutil.copytree(tiny.folder("flux"), tmp_path / "model"))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchHeunDiscreteScheduler"]
    (model / "model_index.json").write_text(json.dumps(index))
    config = {"_class_name": index["scheduler"][1], "num_train_timesteps": 1000, "shift": 1.0}
    (model / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    flags = ["--model", "flux", "--model_path", str(model), "--device", "cpu", "--height", "64", "--width", "64"]
    assert main(["preview", *FLAGS, *flags, "--output_dir", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"proxyqueue: {model}: 4 steps with FlowMatchHeunDiscreteScheduler: ")
    assert err.count("\n") == 1


def test_a_device_that_does_not_compute_is_refused(tmp_path, capsys):
    command = ["preview", "--model", "sdxl", "--prompt", "a dog", "--model_path", "tiny", "--device", "cuda"]
    assert main([*command, "--output_dir", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("proxyqueue: --device cuda: can't be used: ")
