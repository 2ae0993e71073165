"""convergence: distances that can be computed by hand, which images are compared, and what can't be."""

import io
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli import main
from ray_app.evaluation import convergence, convergence_plot, image_similarity
from ray_app.index.trajectories import Trajectories
from ray_app.output.open import open_output
from tests.gallery.test_pages import FLUX
from tests.support.outputs import RECIPE, add_images, image_row
from tests.support.synthetic import encoded

pytestmark = pytest.mark.usefixtures("ray_local")

NOISE = np.random.default_rng(0).integers(-1, 2, (32, 48, 3)) * 40
"""What a step is off by: -40, 0 or 40 a value, times what is left to do."""


def made_image(query: int, step: int, last: int = 8) -> np.ndarray:
    return np.clip(np.full((32, 48, 3), 100 + query) + NOISE * (last - step) // last, 0, 255).astype(np.uint8)


def write_output(output: Path, queries, captures, recipe=RECIPE, run_id="run-1", pixels=made_image, **more) -> None:
    """Lossless images that come nearer to the last by a known amount each step; `more` are columns of every row."""
    images = []
    for query in queries:
        for snapshot, step in captures:
            row = image_row(query, step, snapshot, image_format="png", recipe=recipe)
            images.append((row | more, encoded(pixels(query, step), "png")))
    add_images(output, run_id, images, recipe)


def measured(output: Path, *arguments: str, code: int = 0) -> list[dict]:
    assert main(["convergence", "--output_base_path", str(output), *arguments]) == code
    assert not (output / ".staging").exists()
    return pq.read_table(output / "convergence/convergence.parquet").to_pylist()


def test_rows_say_psnr_and_ssim_of_each_earlier_step(tmp_path, capsys):
    output = tmp_path / "out"
    write_output(output, range(3), [("xt", 2), ("xt", 4), ("xt", 8)])
    rows = measured(output)
    assert [(row["query_id"], row["step"], row["last_step"]) for row in rows] == [
        (query, step, 8) for query in range(3) for step in (2, 4)
    ]
    for row in rows:
        error = made_image(row["query_id"], row["step"]).astype(float) - made_image(row["query_id"], 8)
        assert row["psnr"] == pytest.approx(10 * math.log10(255**2 / (error**2).mean()), abs=1e-4)
        assert row["problem"] is None
    assert rows[0]["ssim"] < rows[1]["ssim"] < 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:6] for line in lines[1:3]] == [
        ["sdxl", "xt", f"{row['step']}", "of", "8", "3"] for row in rows[:2]
    ]
    assert [line.split()[6] for line in lines[1:3]] == [f"{row['psnr']:.1f}" for row in rows[:2]]
    with Image.open(output / "convergence/convergence.png") as plot:
        assert plot.size == (1500, 600)


def test_ssim_is_that_of_its_authors_on_a_flat_image():
    """For two flat images SSIM has a closed form: (2ab + c) / (a² + b² + c) with c = (0.01 · 255)²."""
    dark, light = (np.full((16, 16, 3), value, np.uint8) for value in (60, 120))
    expected = (2 * 60 * 120 + 2.55**2) / (60**2 + 120**2 + 2.55**2)
    assert image_similarity.compare(dark, light).ssim == pytest.approx(expected)
    assert image_similarity.compare(dark, dark) == (math.inf, 1.0)


def test_only_images_of_one_slot_and_denoise_are_compared(tmp_path):
    output = tmp_path / "out"
    both = [(snapshot, step) for snapshot in ("xt", "x0") for step in (2, 8)]
    write_output(output, range(4), both)
    write_output(output, [1], [("xt", 8), ("x0", 8)], run_id="run-2", status="failed", bytes=None)
    write_output(output, [2], [("xt", 2)], run_id="run-3", denoise_id="another")
    (output / "proxy_images_sdxl_step2/combined/combined_r3_0.png").unlink()
    write_output(output, [9], [("xt", 1), ("xt", 4)], FLUX, "run-f")
    rows = measured(output)
    assert [(row["model"], row["query_id"], row["snapshot"], row["step"], row["last_step"]) for row in rows] == [
        ("flux", 9, "xt", 1, 4),
        ("sdxl", 0, "x0", 2, 8),
        ("sdxl", 0, "xt", 2, 8),
        ("sdxl", 2, "x0", 2, 8),
        ("sdxl", 3, "x0", 2, 8),
    ]
    assert [(row["model"], row["snapshot"]) for row in measured(output, "--snapshot", "x0")] == [("sdxl", "x0")] * 3


def test_the_last_of_the_steps_named_is_compared_with(tmp_path):
    output = tmp_path / "out"
    write_output(output, [0], [("xt", step) for step in (1, 2, 4, 8)])
    rows = measured(output, "--steps", "4", "1")
    assert [(row["step"], row["last_step"]) for row in rows] == [(1, 4)]


def test_what_cannot_be_compared_is_named_and_costs_nothing_else(tmp_path, capsys):
    output = tmp_path / "out"
    captures = [("xt", 2), ("xt", 4), ("xt", 8)]
    write_output(output, range(3), captures)
    damaged = output / "proxy_images_sdxl_step8/combined/combined_r1_0.png"
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    write_output(output, [2], [("xt", 4)], run_id="run-2", pixels=lambda *_: made_image(2, 4)[:20])
    rows = measured(output, code=1)
    values = {(row["query_id"], row["step"]): row["psnr"] for row in rows}
    assert {key for key, psnr in values.items() if psnr is None} == {(1, 2), (1, 4), (2, 4)}
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not compared: ")]
    assert len(told) == 2
    assert told[0] == "not compared: proxy_images_sdxl_step8/combined/combined_r1_0.png: cannot identify image file"
    assert told[1].endswith("proxy_images_sdxl_step4/combined/combined_r2_0.png: 48x20 pixels, not 48x32")


def test_equal_images_are_infinitely_near_and_the_plot_bears_it(tmp_path):
    output = tmp_path / "out"
    write_output(output, range(2), [("xt", 1), ("xt", 8)], pixels=lambda query, _: made_image(query, 8))
    assert [(row["psnr"], row["ssim"]) for row in measured(output)] == [(math.inf, 1.0)] * 2
    nothing = convergence_plot.png([])
    assert Image.open(io.BytesIO(nothing)).size == (1500, 600)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "8"], "--steps 8: name at least two; the others are compared with the last one"),
        (["--steps", "0", "8"], "--steps 0: steps begin at 1"),
        (["--model_type", "flux"], "index: has no image of flux; set --output_base_path"),
        (["--steps", "1", "2"], "index: no slot has two steps' images of one denoise; nothing to compare"),
    ],
)
def test_nothing_to_compare_is_refused(tmp_path, capsys, arguments, told):
    write_output(tmp_path / "out", [0], [("xt", 2), ("xt", 8)])
    assert main(["convergence", "--output_base_path", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.strip().endswith(told)
    assert not (tmp_path / "out/convergence").exists()


def test_pairs_of_many_slots_are_made_at_once(tmp_path):
    """A table of pairs has each slot's rows together, so that a task decodes its last image once."""
    write_output(
        tmp_path, range(200), [("xt", 1), ("xt", 2), ("xt", 8)], pixels=lambda *_: np.zeros((1, 1, 3), np.uint8)
    )
    shown = Trajectories(open_output(str(tmp_path)), ["sdxl"])
    made = convergence.pairs(shown.rows("sdxl"), "sdxl")
    assert made["query_id"].to_pylist() == [query for query in range(200) for _ in range(2)]
    assert made["last_path"].to_pylist() == [
        f"proxy_images_sdxl_step8/combined/combined_r{query}_0.png" for query in range(200) for _ in range(2)
    ]


def test_a_generated_output_stays_whole_and_clean_removes_it_all(output, capsys):
    assert main(["convergence", "--output_base_path", str(output)]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[1].split()[:6] == ["sdxl", "xt", "1", "of", "4", "12"]
    assert main(["verify", "--output_base_path", str(output)]) == 0
    assert main(["clean", "--output_base_path", str(output), "--all", "--yes"]) == 0
    assert not output.exists() or list(output.iterdir()) == []
