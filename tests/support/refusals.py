"""Rows of the table of refusals: how each kind of bad input is set up in a folder, and the command that meets it.
Knows files and flags; the messages are in test_refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_app.annotations import circo
from tests.support.outputs import add_images

FIELD = "multi_gpt-3.5_opt"

Prepare = Callable[[Path, dict[str, str]], object]
Row = tuple[Prepare, list[str], str]


def entry(query_id: Any = 0, reference: Any = "r7", prompts: Any = ("a", "b"), **more: Any) -> dict[str, Any]:
    return {"id": query_id, "reference_img_id": reference, FIELD: prompts, **more}


TWO_QUERIES = [entry(), entry(1, "r8")]


def write(here: Path, content: Any = TWO_QUERIES) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (here / "test.json").write_bytes(raw)


def asked(flags: str = "", model: str = "tiny") -> list[str]:
    known = ["--json_file", "test.json", "--output_base_path", "out", "--num_prompts", "2", "--model_path", model]
    return ["generate", *known, *flags.split()]


def annotations(content: Any, message: str, flags: str = "") -> Row:
    return lambda here, models: write(here, content), asked(flags), f"test.json: {message}"


def unusable(bad: Any, message: str) -> Row:
    """A query that is skipped otherwise."""
    return annotations([entry(7), bad], f"{message} (--strict)", "--strict")


def flag(flags: str, message: str) -> Row:
    return lambda here, models: write(here), asked(flags), message


def argument(arguments: list[str], message: str) -> Row:
    return lambda here, models: None, arguments, message


def model(change: Callable[[Path], object], message: str, flags: str = "", kind: str = "sdxl_euler") -> Row:
    def prepare(here: Path, models: dict[str, str]) -> None:
        write(here)
        shutil.copytree(models[kind], here / "model")
        change(here / "model")

    return prepare, asked(flags, "model"), f"HERE/model: {message}"


def output(message: str, flags: str = "", content: Any = TWO_QUERIES) -> Row:
    """An output with the images of two queries, and a command that asks it for something else."""

    def prepare(here: Path, models: dict[str, str]) -> None:
        write(here)
        add(here)
        write(here, content)

    return prepare, asked(flags), f"HERE/out: {message}; take another --output_base_path"


def add(here: Path) -> None:
    """What a run of `asked()` leaves, with other bytes in the images."""
    queries = circo.load(str(here / "test.json"), FIELD, 2).queries()
    images = []
    for slot in circo.slots(queries, 1, 0, "image", "jpg").to_pylist():
        path = f"proxy_images_sdxl_step4/{slot.pop('file')}"
        images.append(({**slot, "snapshot": "xt", "step": 4, "path": path, "status": "ok"}, b"jpg"))
    add_images(here / "out", "run-1", images)


def edit(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**config, **changes}))

    return change


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def a_file_called(name: str) -> Prepare:
    def prepare(here: Path, models: dict[str, str]) -> None:
        write(here)
        (here / name).write_text("")

    return prepare
