"""Feature caches, read as retrieval scripts read them: `torch.load` of files beside a step's images."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ray_app.cli import main
from ray_app.features import parts
from ray_app.index.rows import read_rows
from ray_app.output.open import open_output
from tests.support.outputs import write_images

SIZE = 4


def vector(text: str) -> list[float]:
    return [float(sum(text.encode())), float(len(text)), 1.0, 2.0]


def make(here: Path, gallery: list[str], texts: list[str], missing: int = 0) -> None:
    """An output of three references, and vectors of its images but for some, of a gallery and of texts."""
    write_images(here / "out", "run-1", range(3))
    output = open_output(str(here / "out"))
    own = read_rows(output, "sdxl", ["path", "sha256"]).to_pylist()[missing:]
    rows = [{"name": row["path"], "sha256": row["sha256"], "vector": vector(row["path"])} for row in own]
    rows += [{"name": name, "sha256": name * 8, "vector": vector(name)} for name in gallery]
    rows += [{"text": text, "vector": vector(text)} for text in texts]
    recipe = {"encoder": "openai/clip-vit-large-patch14", "revision": "c0", "preprocessing": "targetpad"}
    with parts.FeaturesWriter(output.writer("run-2"), recipe["encoder"], recipe, SIZE) as part:
        part.append(pa.Table.from_pylist([{**row, "status": "ok"} for row in rows], without_recipe(part.schema)))
    entries = [{"id": n, "reference_img_id": f"r{n}", "multi_gpt-3.5_opt": [f"p{n}", "all"]} for n in range(3)]
    (here / "test.json").write_text(json.dumps(entries))


def without_recipe(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in parts.RECIPE])


def export(here: Path, *flags: str) -> int:
    fixed = ["--format", "npz", "--output_base_path", str(here / "out"), "--export_path", str(here / "caches")]
    return main(["export", *fixed, "--encoder", "L", *flags])


def test_scripts_load_what_they_would_have_cached(tmp_path, capsys):
    make(tmp_path, ["r0", "r1", "r2", "000000000123"], ["p0", "p1", "p2", "all"])
    assert export(tmp_path, "--json_file", str(tmp_path / "test.json")) == 0
    folder = tmp_path / "caches" / "proxy_images_sdxl_step4"
    features = torch.load(folder / "aug_features_L.npz")
    assert set(features) == {"combined", "txt"}
    combined, txt = features["combined"]["r1"], features["txt"]["r1"]
    assert (combined.shape, combined.dtype, txt.shape) == ((1, 1, SIZE), torch.float32, (2, SIZE))
    assert combined[0, 0].tolist() == vector("proxy_images_sdxl_step4/combined/combined_r1_0.jpg")
    assert txt.tolist() == [vector("p1"), vector("all")]
    sources = torch.load(folder / "source_features_L.npz")
    assert sources["r2"].tolist() == [vector("r2")]
    gallery = torch.load(tmp_path / "caches" / "circo_test_L.npz")
    assert gallery["name"] == ["r0", "r1", "r2", "123"]
    assert np.array_equal(gallery["feature"].numpy(), [vector(n) for n in ("r0", "r1", "r2", "000000000123")])
    assert "proxy_images_sdxl_step1: 3 references, 3 with a photo, 3 with texts" in capsys.readouterr().out


def test_references_that_lack_a_vector_are_left_out_and_told(tmp_path, capsys):
    make(tmp_path, [], ["p0", "all"], missing=1)
    assert export(tmp_path, "--json_file", str(tmp_path / "test.json"), "--steps", "1") == 1
    out = capsys.readouterr().out
    assert "proxy_images_sdxl_step1: reference r0: 1 of 1 images have no vector" in out
    assert "proxy_images_sdxl_step1: query 1: 1 of 2 prompts have no vector" in out
    features = torch.load(tmp_path / "caches" / "proxy_images_sdxl_step1" / "aug_features_L.npz")
    assert set(features["combined"]) == {"r1", "r2"}
    assert set(features["txt"]) == {"r0"}
    assert sorted(path.name for path in (tmp_path / "caches").iterdir()) == ["proxy_images_sdxl_step1"]


def test_bad_input_is_one_line(tmp_path, capsys):
    make(tmp_path, [], [])
    flags = ["export", "--output_base_path", str(tmp_path / "out"), "--export_path", str(tmp_path / "caches")]
    for more, message in (
        (["--format", "npz"], "--encoder: goes with --format npz, which needs it"),
        (["--format", "webdataset", "--encoder", "L"], "--encoder: goes with --format npz, which needs it"),
        (
            ["--format", "npz", "--encoder", "L", "--dataset", "a/b"],
            "--dataset 'a/b': has a slash; it must be a plain name",
        ),
        (
            ["--format", "npz", "--encoder", "G"],
            f"{tmp_path}/out/features/encoder=laion--CLIP-ViT-g-14-laion2B-s12B-b42K: no vectors of"
            " laion/CLIP-ViT-g-14-laion2B-s12B-b42K with targetpad; `proxyqueue features` encodes them",
        ),
    ):
        assert main([*flags, *more]) == 2
        assert capsys.readouterr().err == f"proxyqueue: {message}\n"
    assert not (tmp_path / "caches").exists()
