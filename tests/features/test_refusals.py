"""Bad input of features: each with the exact line it gets, exit code 2, and nothing written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from actors import encoders
from ray_app.cli import main
from tests.support.encoders import save_config

KINDS = ", ".join(encoders.KINDS)
SHORT = ", ".join(["tiny", *encoders.SHORT_NAMES])


def config(**values: object) -> Callable[[Path], object]:
    return lambda here: (here / "clip" / "config.json").write_text(json.dumps(values))


def remove(name: str) -> Callable[[Path], object]:
    return lambda here: (here / "clip" / name).unlink()


def nothing(here: Path) -> None:
    """The input is wrong by its flags."""


@pytest.mark.parametrize(
    ("prepare", "flags", "message"),
    [
        (nothing, "", "--encoder: is missing; it takes STR (see proxyqueue features --help)"),
        (
            nothing,
            "--encoder none",
            f"--encoder none: no such folder, no hub id (owner/name), and none of {SHORT}",
        ),
        (nothing, "--encoder clip --revision main", "--revision main: clip is not a hub id; leave it out"),
        (remove("config.json"), "--encoder clip", "HERE/clip: no config.json; this is not a model of transformers"),
        (
            config(model_type="bert"),
            "--encoder clip",
            f"HERE/clip: config.json: 'model_type' is 'bert'; an encoder is one of {KINDS}",
        ),
        (
            config(model_type="clip", projection_dim="many"),
            "--encoder clip",
            "HERE/clip: config.json: 'projection_dim' is 'many', not a whole number from 1",
        ),
        (
            config(model_type="siglip", vision_config={"image_size": [8, 8]}),
            "--encoder clip",
            "HERE/clip: config.json: 'vision_config.image_size' is '[8, 8]', not a whole number from 1",
        ),
        (
            remove("model.safetensors"),
            "--encoder clip",
            "HERE/clip: no .safetensors weights of transformers in it; other formats are not loaded",
        ),
        (
            nothing,
            "--encoder clip --preprocessing model",
            "HERE/clip: no preprocessor_config.json; take --preprocessing targetpad",
        ),
        (
            nothing,
            "--encoder clip",
            "HERE/out: no images of an index in it; set --output_base_path, --images or --texts",
        ),
        (nothing, "--encoder clip --steps 4", "HERE/out: no image of --steps 4 in its index"),
        (nothing, "--encoder clip --texts caption", "--texts caption: name the annotations with --json_file"),
        (nothing, "--encoder clip --json_file test.json", "--json_file: name the fields to encode with --texts"),
        (
            nothing,
            "--encoder clip --json_file test.json --texts captions",
            "test.json: no text in any 'captions' (--texts); fields with texts: caption, prompts",
        ),
        (
            nothing,
            "--encoder clip --json_file none.json --texts caption",
            "none.json: no such file; name the annotations with --json_file",
        ),
        (nothing, "--encoder clip --images none", "--images none: no such folder or Parquet file, or an empty one"),
        (nothing, "--encoder clip --batch_size 0", "--batch_size 0: must be at least 1"),
        (nothing, "--encoder clip --batch_timeout 0", "--batch_timeout 0: must be above 0"),
        (
            nothing,
            "--encoder clip --num_workers 0",
            "--num_workers 0: not a number of actors, N or MIN:MAX, from 1",
        ),
    ],
    ids=lambda value: re.sub(r"\W+", "_", value)[:60] if isinstance(value, str) else "",
)
def test_bad_input_gets_exactly_this_line(prepare, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_config(tmp_path / "clip")
    (tmp_path / "test.json").write_text(json.dumps([{"id": 1, "caption": "a", "prompts": ["b"], "count": 3}]))
    prepare(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code = main(["features", "--output_base_path", "out", *flags.split()])
    out, err = capsys.readouterr()
    assert err.replace(f"{tmp_path}/", "HERE/") == f"proxyqueue: {message}\n"
    assert (code, out) == (2, "")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("value", ["caption", "prompts"])
def test_texts_that_no_file_can_hold_are_left_out(value, tmp_path):
    from ray_app.annotations import circo

    entries = [{"caption": "a\ud800", "prompts": ["b", "b", 5, "\udc00"]}, {"caption": "c", "prompts": None}]
    (tmp_path / "test.json").write_text(json.dumps(entries))
    assert circo.texts(str(tmp_path / "test.json"), [value]) == {"caption": ["c"], "prompts": ["b"]}[value]
