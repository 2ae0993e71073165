"""Shared parts of the tests: real tiny pipelines in local folders, one local Ray, the command as a subprocess."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.recipe import Recipe
from ray_app import machine
from ray_app.cluster import connection
from ray_app.generation import recipes
from ray_app.generation.options import Generate
from ray_app.generation.worker import ImageWorker
from tests.support import processes
from tests.support.synthetic import SyntheticWorker

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "ray_app" / "sample.json"
SLOW_SECONDS = 600

# a shell that runs the tests in the background lets them ignore Ctrl-C, and all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
# Ray reads this when it is imported: no thread that outlives a test may start another Ray
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Ray's workers import the project and `tests` from here, whatever the working directory is
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_report_header() -> str:
    return ", ".join(f"{name} {version}" for name, version in machine.versions().items())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests have more time than the others, those that say how much have that."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


@pytest.fixture(scope="session", autouse=True)
def no_process_outlives_its_test() -> Iterator[None]:
    """Fails, at the end of the session, with the names of the tests that left processes behind; ends those."""
    processes.mark_descendants()
    yield
    left = processes.end_descendants(seconds=30)
    assert not left, "processes outlived their tests:\n" + "\n".join(left)


@pytest.fixture(scope="session", autouse=True)
def no_gpus(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests see is the same on a machine with GPUs: Ray and torch find none, nor does nvidia-smi."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    program = tmp_path_factory.mktemp("no_gpus") / "nvidia-smi"
    program.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    program.chmod(0o755)
    os.environ["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(scope="session", autouse=True)
def ray_folder() -> Iterator[None]:
    """Ray's files lie in a folder of this session with a short path: Ray makes sockets below it (107 bytes)."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_local(ray_folder: None, no_gpus: None) -> Iterator[None]:
    """One local Ray for all tests that run `generate` in this process; it finds it and leaves it running."""
    with connection.connected("local"):
        yield


def generate_sample(output: Path, worker: type[ImageWorker] = ImageWorker) -> Path:
    """Run the sample with one actor, two prompts per query at steps 1 and 4. Ray must be connected."""
    from ray_app.generation.generate import generate

    flags = {"model_path": "tiny", "max_inference_steps": 4, "save_steps": ("1", "4"), "num_prompts": 2}
    options = Generate(json_file=str(SAMPLE), output_base_path=str(output), num_workers="1", **flags)
    assert generate(options, worker) == 0
    return output


@pytest.fixture(scope="session")
def drawn(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the sample, with synthetic images; copied by tests that change it."""
    return generate_sample(tmp_path_factory.mktemp("drawn") / "out", SyntheticWorker)


@pytest.fixture(scope="session")
def drawn_by_model(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the tiny model, for tests that generate its images again."""
    return generate_sample(tmp_path_factory.mktemp("drawn_by_model") / "out")


@pytest.fixture
def output(drawn: Path, tmp_path: Path) -> Path:
    """A copy of it, with the files' times."""
    return Path(shutil.copytree(drawn, tmp_path / "out"))


def read_helps() -> dict[str, Any]:
    """What --help prints: "" for the program, and each command; under "imported" the modules imported for it."""
    code = """
import contextlib, io, json, os, sys
from ray_app.cli import COMMANDS, main
os.environ |= {"COLUMNS": "110", "NO_COLOR": "1"}
printed = {}
for command in ("", *COMMANDS):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as of a terminal that can show a box
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert not main([command, "--help"] if command else ["--help"])
    out.flush()
    printed[command] = out.buffer.getvalue().decode()
print(json.dumps({**printed, "imported": sorted(sys.modules)}))
"""
    return json.loads(run_python(code))


@pytest.fixture(scope="session")
def helps() -> dict[str, Any]:
    """`read_helps`, once."""
    return read_helps()


@pytest.fixture(scope="session")
def circo_json() -> str:
    """The real annotations, where CIRCO_JSON names them."""
    path = os.environ.get("CIRCO_JSON")
    if not path:
        pytest.skip("CIRCO_JSON names no annotations")
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders saved with save_pretrained: SDXL with Euler and with EulerAncestral, Flux, and SDXL with two poisons."""
    import torch
    from diffusers import EulerDiscreteScheduler

    from actors import tiny
    from actors.families import FAMILIES
    from actors.pipelines import dtype_argument, pipeline_class

    root = tmp_path_factory.mktemp("models")
    flux, ancestral, euler, poison = (
        pipeline_class(FAMILIES[kind]).from_pretrained(tiny.folder(kind), **dtype_argument(torch.float32))
        for kind in ("flux", "sdxl", "sdxl", "sdxl")
    )
    scheduler = {name: value for name, value in euler.scheduler.config.items() if name != "timestep_spacing"}
    euler.scheduler = EulerDiscreteScheduler.from_config(scheduler, timestep_spacing="leading")
    _poison(poison)
    pipes = {"flux": flux, "sdxl_ancestral": ancestral, "sdxl_euler": euler, "sdxl_poison": poison}
    for name, pipe in pipes.items():
        pipe.save_pretrained(root / name)
    return {name: str(root / name) for name in pipes}


def _poison(pipe) -> None:
    """A prompt with "~" gives NaN latents; one with "kaboom", a token beyond the embedding, raises an IndexError."""
    import torch

    for encoder, tokenizer in ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2)):
        poisoned = tokenizer.convert_tokens_to_ids(["~", "~</w>"])
        with torch.no_grad():
            encoder.get_input_embeddings().weight[poisoned] = torch.nan
        tokenizer.add_tokens(["kaboom"])


@pytest.fixture
def recipe_for() -> Callable[..., Recipe]:
    """Resolve flags to a recipe, on the CPU unless said otherwise."""

    def resolve(**flags) -> Recipe:
        return recipes.resolve(Generate(**{"device": "cpu", **flags}))

    return resolve


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no filesystem can be mounted here: {mounted.stderr.strip()}")
    yield place
    while not subprocess.run(["umount", "--lazy", place], capture_output=True).returncode:
        pass  # until nothing is mounted there: a test may have done it itself


MODEL, PACED = "ray_app", "tests.support.paced"
"""Programs that `run_cli` and `start_cli` run: the command, and the same with a `PacedWorker`."""


def run_cli(
    *arguments: str, cwd: Path | None = None, program: str = MODEL, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m ray_app …` to its end, as a user would run it."""
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_python(code: str) -> str:
    """What code prints in a process of its own, where memory is as at a start."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


def start_cli(
    *arguments: str, cwd: Path | None = None, program: str = MODEL, **environment: str
) -> subprocess.Popen[str]:
    """The same, going on in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_tree(root: Path) -> dict[str, bytes]:
    """Every image of an output by its relative path."""
    files = (path for path in root.glob("proxy_images_*/combined*/*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def obeying_permissions() -> list[str]:
    """What to put before a command so that a file's mode binds it, root or not."""
    if os.geteuid():
        return []
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("root can't give up its override of permissions here")
    return prefix


def flip_bit_of_a_page(part: Path, column: str) -> None:
    """Change one bit in the middle of a column's data; the footer stays as it is."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(part)
    group = file.metadata.row_group(0)
    chunk = next(chunk for chunk in map(group.column, range(group.num_columns)) if chunk.path_in_schema == column)
    content = bytearray(part.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size // 2] ^= 1
    part.write_bytes(content)
