"""Models of the hub, from one on loopback and from the client's cache: what is loaded, and what an ill hub leads to."""

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from actors import hub
from actors.errors import ModelError
from actors.pipelines import load
from actors.recipe import Recipe
from ray_app.errors import Refused
from ray_app.generation import recipes
from ray_app.generation.model_card import read_card
from tests.conftest import SAMPLE, obeying_permissions, read_tree, run_cli
from tests.support.hub_server import Hub, serve

NOBODY = "http://127.0.0.1:9"
OLD, NEW = "a" * 40, "b" * 40
WEIGHT = "conv_in.bias"
WEIGHTS = [f"{part}/{name}.safetensors" for part, name in (
    ("text_encoder", "model"), ("text_encoder_2", "model"), ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
)]  # fmt: skip


@pytest.fixture(scope="module")
def commits(models, tmp_path_factory) -> dict[str, Path]:
    """Two commits of a model with other UNet weights."""
    folders = {}
    for number, commit in enumerate((OLD, NEW)):
        folders[commit] = Path(shutil.copytree(models["sdxl_euler"], tmp_path_factory.mktemp("commit") / commit))
        file = folders[commit] / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({**weights, WEIGHT: torch.full_like(weights[WEIGHT], number)}, file, {"format": "pt"})
    return folders


def ask(address: str, monkeypatch) -> None:
    """Have this process's client ask a hub there: it reads its variables on import."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def served(commits, tmp_path, monkeypatch):
    """A hub that has both as lab/sdxl, main at the old one; this process's client asks it, with an empty cache."""
    with serve() as served:
        served.add("lab/sdxl", NEW, commits[NEW])
        served.add("lab/sdxl", OLD, commits[OLD])
        ask(served.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield served


@pytest.fixture
def said() -> list[str]:
    return []


def loaded_weight(recipe: Recipe) -> set[float]:
    return set(load(recipe).pipe.unet.state_dict()[WEIGHT].tolist())


def fetched(recipe: Recipe, said: list[str]) -> Path:
    return hub.files_of(recipe, said.append).fetch()


def test_the_recipes_commit_is_loaded_after_its_branch_has_moved_on(served, recipe_for):
    recipe = recipe_for(model_path="lab/sdxl")
    assert recipe.model_revision == OLD
    served.main["lab/sdxl"] = NEW
    assert loaded_weight(recipe) == {0.0}
    strict, _ = recipes.differences(recipe_for(model_path="lab/sdxl"), vars(recipe))
    assert strict == [f"the model's revision: this output has '{OLD}', this run requests '{NEW}'"]


def test_a_requested_commit_is_loaded(served, recipe_for):
    recipe = recipe_for(model_path="lab/sdxl", revision=NEW)
    assert recipe.model_revision == NEW
    assert loaded_weight(recipe) == {1.0}


def test_only_what_is_read_is_downloaded_and_once(served, commits, recipe_for, said):
    """Files of another variant or format, and images, are not downloaded."""
    folder = commits[OLD]
    for other in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx", "picture.png"):
        (folder / other).write_bytes(b"0")
    try:
        recipe = recipe_for(model_path="lab/sdxl")
        assert load(recipe)
        assert load(recipe)
    finally:
        for other in ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx", "picture.png"):
            (folder / other).unlink()
    assert {name: count for name, count in served.got.items() if not name.endswith(".json")} == dict.fromkeys(
        WEIGHTS, 1
    )
    assert set(served.got.values()) == {1}


def test_a_download_that_breaks_off_goes_on(served, recipe_for, said):
    served.cut = 10_000
    folder = fetched(recipe_for(model_path="lab/sdxl"), said)
    assert all(
        (folder / name).read_bytes() == (served.commits["lab/sdxl"][OLD] / name).read_bytes() for name in WEIGHTS
    )
    assert max(served.got.values()) == 2


def test_a_vae_of_the_hub_is_pinned_to_its_commit_and_downloaded_once(served, commits, recipe_for, monkeypatch):
    """Offline too; when its branch has moved, the refusal says which revision the output has."""
    for commit in (NEW, OLD):
        served.add("lab/vae", commit, commits[commit] / "vae")
    flags = {"model_path": "tiny", "vae_path": "lab/vae"}
    recipe = recipe_for(**flags)
    assert (recipe.vae_path, recipe.vae_revision, recipe.vae_hub_revision) == ("lab/vae", OLD, OLD)
    for _ in range(2):
        assert load(recipe).pipe.vae.config._name_or_path == hub.files_of_vae(recipe, print).folder
    assert served.got["diffusion_pytorch_model.safetensors"] == 1
    served.main["lab/vae"] = NEW
    moved = recipe_for(**flags)
    advice = f"; --vae_revision {OLD} selects the VAE that generated them"
    assert recipes._revision_advice(moved, vars(recipe)) == advice
    assert recipe_for(**flags, vae_revision=OLD) == recipe
    ask(NOBODY, monkeypatch)
    assert recipe_for(**flags, vae_revision=OLD) == recipe
    assert load(recipe)


ILL = {
    "nobody answers": lambda served: setattr(served, "gone", True),
    "overloaded": lambda served: setattr(served, "api_ill", 503),
    "rate limited": lambda served: setattr(served, "api_ill", 429),
    "broken": lambda served: setattr(served, "api_ill", 500),
    "a captive portal": lambda served: setattr(served, "page", True),
    "a token that is no longer good": lambda served: served.gated.add("lab/sdxl"),
}


@pytest.mark.parametrize("illness", ILL)
def test_a_model_that_is_in_the_cache_is_drawn_whatever_the_hub_has(illness, served, recipe_for, monkeypatch, capsys):
    recipe = recipe_for(model_path="lab/sdxl")
    assert load(recipe)
    ILL[illness](served)
    if illness == "nobody answers":
        ask(NOBODY, monkeypatch)
    before = served.got.total()
    assert recipe_for(model_path="lab/sdxl") == recipe
    assert loaded_weight(recipe) == {0.0}
    assert served.got.total() == before


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_hub_is_asked_again(status, served, recipe_for, said):
    recipe = recipe_for(model_path="lab/sdxl")
    served.ill = (status, 8)  # the client passes over a first failure of each file
    assert fetched(recipe, said)
    assert len(said) == 1
    assert said[0].startswith(f"lab/sdxl: HTTP Error {status} thrown while requesting HEAD {served.address}/lab/sdxl/")
    assert said[0].endswith("; the client retries")


class NetworkError(Exception):
    """By its name one of the client's HTTP library."""


def test_what_the_client_gives_up_is_tried_again_with_growing_pauses(said, monkeypatch):
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.02))
    left = [NetworkError("reset"), NetworkError("reset")]

    def download() -> str:
        if left:
            raise left.pop()
        return "here"

    assert hub.patiently(download, "lab/sdxl", said.append) == "here"
    why = "lab/sdxl: the hub can't be reached (reset); retrying in"
    assert said == [f"{why} 0.01 s", f"{why} 0.02 s"]
    left += [NetworkError("reset")] * 3
    with pytest.raises(ModelError, match=r"the hub can't be reached \(reset\)"):
        hub.patiently(download, "lab/sdxl", said.append)
    left[:] = [ValueError("a fault")]
    with pytest.raises(ModelError, match="a fault"):
        hub.patiently(download, "lab/sdxl", said.append)
    assert len(said) == 4


@pytest.mark.slow  # the client itself tries for 23 s
def test_weights_that_an_overloaded_hub_does_not_give(served, recipe_for, said, monkeypatch):
    monkeypatch.setattr(hub, "WAITS", ())
    recipe = recipe_for(model_path="lab/sdxl")
    served.ill = (503, -1)
    with pytest.raises(ModelError, match=r"^lab/sdxl: the hub answers 503 for \w+/\w+\.safetensors$"):
        fetched(recipe, said)
    assert [line.endswith("; the client retries") for line in said] == [True]


@pytest.mark.parametrize("status", [403, 404])
def test_weights_that_the_hub_does_not_give(status, served, recipe_for, said):
    recipe = recipe_for(model_path="lab/sdxl")
    served.ill = (status, -1)
    with pytest.raises(ModelError, match=rf"^lab/sdxl: the hub answers {status} for \w+/\w+\.safetensors$"):
        fetched(recipe, said)
    assert not said


def test_what_can_not_be_had(served, tmp_path, monkeypatch):
    for repository, revision, message in (
        ("lab/other", None, "lab/other: neither a folder nor a model on the hub (private ones need HF_TOKEN)"),
        ("lab/sdxl", "v9", "lab/sdxl: the hub has no revision 'v9' of it"),
    ):
        with pytest.raises(Refused) as raised:
            read_card("sdxl", repository, revision, half=False)
        assert str(raised.value) == message
    served.gated.add("lab/sdxl")
    with pytest.raises(Refused, match="lab/sdxl: a gated model; accept its terms on the hub and set HF_TOKEN"):
        read_card("sdxl", "lab/sdxl", None, half=False)
    served.gated.clear()
    served.page = True
    with pytest.raises(Refused, match="lab/sdxl: not in the local cache, and the hub can't be reached"):
        read_card("sdxl", "lab/sdxl", None, half=False)
    ask(NOBODY, monkeypatch)
    with pytest.raises(Refused, match="lab/sdxl: not in the local cache, and the hub can't be reached"):
        read_card("sdxl", "lab/sdxl", None, half=False)


@pytest.mark.slow  # likewise
def test_a_cache_without_the_weights_says_so_when_the_hub_is_gone(served, recipe_for, monkeypatch, said):
    monkeypatch.setattr(hub, "WAITS", ())
    recipe = recipe_for(model_path="lab/sdxl")  # its configs are there
    ask(NOBODY, monkeypatch)
    assert recipe_for(model_path="lab/sdxl") == recipe
    with pytest.raises(ModelError, match=r"^lab/sdxl: not in the local cache, and the hub can't be reached "):
        fetched(recipe, said)
    assert len(said) == 1


def test_a_disk_without_room_is_said_before_the_first_byte(served, small_disk, recipe_for, monkeypatch, said):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(small_disk))
    recipe = recipe_for(model_path="lab/sdxl")
    (small_disk / "ballast").write_bytes(b"0" * 2_000_000)
    with pytest.raises(ModelError) as raised:
        fetched(recipe, said)
    assert str(raised.value).startswith(f"{small_disk}: 14.1 MB are needed for lab/sdxl and ")
    assert str(raised.value).endswith(" MB are free; make room, or set HF_HOME to a folder of another disk")
    assert not any(name in served.got for name in WEIGHTS)


def test_a_cache_that_can_not_be_written(served, tmp_path):
    (tmp_path / "home").mkdir(mode=0o555)
    flags = ("--model_path", "lab/sdxl", "--device", "cpu", "--dry_run", "--json_file", str(SAMPLE))
    code = "import sys; from ray_app.cli import main; sys.exit(main(sys.argv[1:]))"
    import os
    import subprocess

    result = subprocess.run(
        [*obeying_permissions(), sys.executable, "-c", code, "generate", *flags],
        env={**os.environ, "HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert f"proxyqueue: {tmp_path / 'home'}" in result.stderr
    assert "Permission denied" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def generate(served: Hub, home: Path, out: Path, *flags: str, **environment: str):
    return run_cli(
        "generate", "--json_file", str(SAMPLE), "--output_base_path", str(out), "--model_path", "lab/sdxl",
        "--device", "cpu", "--max_inference_steps", "2", "--save_steps", "2", "--num_prompts", "1", *flags,
        HF_ENDPOINT=served.address, HF_HOME=str(home), **environment,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_downloads_each_file_once_and_goes_on_without_the_hub(served, tmp_path):
    """Two actors; then the branch moves: the output wants its commit, which the refusal names."""
    first = generate(served, tmp_path / "home", tmp_path / "out", "--num_workers", "2")
    assert first.returncode == 0, first.stderr
    assert {name: served.got[name] for name in WEIGHTS} == dict.fromkeys(WEIGHTS, 1)
    assert len(read_tree(tmp_path / "out")) == 6
    served.main["lab/sdxl"] = NEW
    moved = generate(served, tmp_path / "home", tmp_path / "out", "--num_prompts", "2")
    assert moved.returncode == 2
    assert f"--revision {OLD} selects the model that generated them" in moved.stderr
    resumed = generate(served, tmp_path / "home", tmp_path / "out", "--num_prompts", "2", "--revision", OLD)
    assert resumed.returncode == 0, resumed.stderr
    served.page = True
    assert generate(served, tmp_path / "home", tmp_path / "out", "--revision", OLD).returncode == 0
    assert Counter(served.got)[WEIGHTS[0]] == 1


@pytest.mark.slow
def test_a_download_may_take_longer_than_ray_data_waits_for_progress(served, tmp_path):
    served.bytes_per_second = 600_000
    result = generate(served, tmp_path / "home", tmp_path / "out", RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="3")
    assert result.returncode == 0, result.stderr
    assert " of 14.1 MB of lab/sdxl fetched, " in result.stderr
