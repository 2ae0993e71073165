"""Compiled code is kept in a folder, and one process of a machine makes it; torch.compile itself is slow to try."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from actors import compiled
from actors.errors import ModelError
from actors.families import FAMILIES
from actors.generator import ImageGenerator
from actors.pipelines import load
from actors.recipe import Capture
from tests.conftest import ROOT, run_python
from tests.support.processes import wait_for

HOLDER = """
import sys, time
from actors import compiled
with compiled.shared("key"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code is kept; torch's variable is restored after the test."""
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "code"))
    return tmp_path / "code"


def test_the_folder_is_in_the_users_cache_unless_torchs_variable_names_one(folder, monkeypatch):
    assert compiled.folder() == folder
    monkeypatch.delenv(compiled.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compiled.folder() == Path("/caches/proxyqueue/compiled")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compiled.folder() == Path("~/.cache/proxyqueue/compiled").expanduser()


def test_the_others_wait_for_the_first_and_not_for_each_other():
    entered, may_end = [], [threading.Event() for _ in range(3)]

    def compile_in_turn(number: int) -> None:
        with compiled.shared("key"):
            entered.append(number)
            may_end[number].wait(60)

    threads = [threading.Thread(target=compile_in_turn, args=(number,), daemon=True) for number in range(3)]
    threads[0].start()
    wait_for("the first compiles", lambda: entered == [0], 30)
    threads[1].start()
    threads[2].start()
    with compiled.shared("another key"):
        assert entered == [0]
    may_end[0].set()
    wait_for("both others read its code", lambda: sorted(entered) == [0, 1, 2], 30)
    for number in (1, 2):
        may_end[number].set()


def test_after_an_error_the_next_one_compiles():
    with pytest.raises(ValueError, match="no kernel"), compiled.shared("key"):
        raise ValueError("no kernel")
    assert not list(compiled.folder().glob("*.done"))
    with compiled.shared("key"):
        pass
    assert len(list(compiled.folder().glob("*.done"))) == 1


def test_a_process_that_is_killed_while_it_compiles_holds_nobody_up():
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    entered = threading.Event()

    def wait() -> None:
        with compiled.shared("key"):
            entered.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not entered.wait(0.2)
    holder.kill()
    holder.wait()
    assert entered.wait(30)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "file" / "code"))
    with pytest.raises(ModelError) as raised, compiled.shared("key"):
        pass
    assert str(raised.value) == (
        f"{tmp_path}/file/code: compiled code can't be kept there: Not a directory;"
        " set TORCHINDUCTOR_CACHE_DIR to another folder"
    )


def images(recipe_for: Callable, **flags: object) -> np.ndarray:
    recipe = recipe_for(model_path="tiny", max_inference_steps=2, save_steps=("2",), batch_size=2, **flags)
    generator = ImageGenerator(recipe, [Capture(2)], threads=1)
    return generator.pixels(["a dog", "a cat"], [0, 1], [Capture(2)])[Capture(2)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_denoiser_and_the_vaes_decoder_are_compiled(model_type, recipe_for):
    """When they are first called: nothing is called here."""
    model = load(recipe_for(model_type=model_type, model_path="tiny", compile="on"))
    assert is_compiled(model.pipe.vae.decoder)
    assert is_compiled(model.denoiser) == FAMILIES[model_type].compiles_whole_denoiser
    assert any(is_compiled(module) for module in model.denoiser.modules())
    plain = load(recipe_for(model_type=model_type, model_path="tiny"))
    assert not any(is_compiled(module) for module in [*plain.denoiser.modules(), *plain.pipe.vae.modules()])


def is_compiled(module: torch.nn.Module) -> bool:
    return module._compiled_call_impl is not None


@pytest.mark.slow
def test_compiled_images_are_equal_but_for_low_bits(recipe_for, folder):
    """With a real compiler; a second process of the same machine finds all code. SDXL's whole UNet takes minutes."""
    model_type = "flux"
    plain = images(recipe_for, model_type=model_type)
    quick = images(recipe_for, model_type=model_type, compile="on")
    assert np.abs(plain.astype(int) - quick.astype(int)).max() <= 2
    assert list(folder.glob("*.done"))
    kept = {file for file in folder.rglob("*") if file.suffix in (".so", ".cpp")}
    assert kept
    code = (
        "from actors.generator import ImageGenerator; from actors.recipe import Capture;"
        "from ray_app.generation.options import Generate; from ray_app.generation.recipes import resolve;"
        f"recipe = resolve(Generate(model_type={model_type!r}, model_path='tiny', max_inference_steps=2,"
        " save_steps=('2',), batch_size=2, compile='on'));"
        "ImageGenerator(recipe, [Capture(2)], 1); print(recipe.compiled)"
    )
    assert run_python(code).strip() == "True"
    assert {file for file in folder.rglob("*") if file.suffix in (".so", ".cpp")} == kept
