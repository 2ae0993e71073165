"""export: each form loaded back by the library that its users would use, and the tree read as retrieval scripts do."""

import collections
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_app.cli import main
from ray_app.export import trajectories
from tests.conftest import generate_sample, read_tree, start_cli
from tests.gallery.test_pages import FLUX, write_output
from tests.support.outputs import newest_rows, parts
from tests.support.processes import comes_true, wait_for
from tests.support.synthetic import SyntheticWorker


def exported(output, kind, *arguments):
    return main(["export", "--format", kind, "--output_base_path", str(output), *map(str, arguments)])


def refusal(capsys, *arguments):
    capsys.readouterr()
    assert exported(*arguments) == 2
    return capsys.readouterr().err.removeprefix("proxyqueue: ").strip()


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The library, with its caches in a folder of their own and no thought of a network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        cache = str(tmp_path_factory.mktemp("datasets"))
        for name in ("HF_HOME", "HF_DATASETS_CACHE"):
            patch.setenv(name, cache)
        loaded = pytest.importorskip("datasets")
        loaded.disable_progress_bars()
        patch.setattr(loaded.config, "HF_DATASETS_CACHE", Path(cache))
        yield loaded


@pytest.fixture
def mixed(tmp_path):
    """Four queries of sdxl, one of flux; one image of query 2 failed at step 4, one of query 3 is gone."""
    output = tmp_path / "out"
    write_output(output, range(4))
    write_output(output, [9], ["xt"], [4], recipe=FLUX, run_id="run-f")
    write_output(output, [2], ["xt"], [4], run_id="run-2", status="failed", error_type="OutOfMemory", bytes=None)
    (output / "proxy_images_sdxl_step1/combined/combined_r#3_1.jpg").unlink()
    return output


def test_imagefolder_gives_images_with_their_rows(output, datasets):
    assert exported(output, "imagefolder") == 0
    folder = output / "proxy_images_sdxl_step4"
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert len(loaded) == 12
    rows = {row["path"]: row for row in newest_rows(output) if row["step"] == 4}
    files = {row["sha256"] + str(row["query_id"]) + str(row["k"]): path for path, row in rows.items()}
    for row in loaded:
        path = files[row["sha256"] + str(row["query_id"]) + str(row["k"])]
        assert (row["prompt"], row["seed"], row["model"]) == (rows[path]["prompt"], 0, "sdxl")
        assert row["image"].tobytes() == Image.open(output / path).convert("RGB").tobytes()
    assert {path.name for path in (folder / "combined").iterdir()} == {
        f"combined_{reference}_{k}.jpg" for reference in range(100101, 100106) for k in (0, 1)
    }


def test_imagefolder_has_only_images_that_are_there(mixed, datasets, capsys):
    assert exported(mixed, "imagefolder", "--snapshot", "xt") == 0
    assert [line.rsplit(": ")[1] for line in capsys.readouterr().out.splitlines()] == [
        "7 images", "6 images", "2 images"
    ]  # fmt: skip
    assert not (mixed / "proxy_images_sdxl_x0_step1/metadata.parquet").exists()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(mixed / "proxy_images_sdxl_step4"), split="train")
    assert sorted(set(loaded["query_id"])) == [0, 1, 3]
    assert not (mixed / ".staging").exists()


def test_metadata_is_no_stray_goes_with_clean_and_never_outlives_an_image(output, capsys):
    step1, step4 = (output / f"proxy_images_sdxl_step{step}" for step in (1, 4))
    assert exported(output, "imagefolder") == 0
    verify = ["verify", "--output_base_path", str(output)]
    assert main(verify) == 0
    image = step1 / "combined/combined_100102_0.jpg"
    image.write_bytes(image.read_bytes())
    assert main(verify) == 1
    assert "1  stale cache" in capsys.readouterr().out
    assert main([*verify, "--repair"]) == 1
    assert not (step1 / "metadata.parquet").exists()
    assert main(verify) == 0
    assert main(["clean", "--output_base_path", str(output), "--model_type", "sdxl", "--steps", "4", "--yes"]) == 0
    assert not step4.exists()


def test_generating_removes_metadata_that_would_be_stale(output, ray_local):
    assert exported(output, "imagefolder") == 0
    (output / "proxy_images_sdxl_step4/combined/combined_100102_0.jpg").unlink()
    generate_sample(output, SyntheticWorker)
    assert not (output / "proxy_images_sdxl_step4/metadata.parquet").exists()
    assert (output / "proxy_images_sdxl_step1/metadata.parquet").exists()


def test_trajectories_have_one_row_per_slot_and_one_image_column_per_step(mixed, tmp_path, datasets, monkeypatch):
    monkeypatch.setattr(trajectories, "SLOTS_A_GROUP", 2)
    assert exported(mixed, "trajectories", "--export_path", tmp_path / "ex", "--shard_images", 4) == 0
    files = sorted(path.name for path in (tmp_path / "ex").iterdir())
    assert files == ["trajectories-00000.parquet", "trajectories-00001.parquet", "trajectories-00002.parquet"]
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "ex/*.parquet"), split="train")
    columns = ["xt_step_1", "xt_step_4", "x0_step_1", "x0_step_4"]
    assert loaded.column_names[-4:] == columns
    assert [(row["model"], row["query_id"], row["prompt_index"]) for row in loaded] == [
        *(("sdxl", query, prompt) for query in range(4) for prompt in (0, 1)), ("flux", 9, 0), ("flux", 9, 1)
    ]  # fmt: skip
    assert loaded[2]["prompt"] == "a thing number001 view0"
    for row in loaded:
        missing = {name for name in columns if row[name] is None}
        expected = {
            "flux": {"xt_step_1", "x0_step_1", "x0_step_4"},
            "sdxl": {"xt_step_4"} if row["query_id"] == 2 else {"xt_step_1"} if row["prompt_index"] == 1 else set(),
        }
        assert missing == expected[row["model"]] or (row["query_id"] in (0, 1) and not missing)
        if row["model"] == "sdxl":
            assert row["x0_step_4"].size == (96, 64)
            assert row["x0_step_4"].getpixel((5, 5)) == pytest.approx((row["query_id"] * 3, 200, 200), abs=4)


def test_webdataset_shards_hold_every_image_with_its_row(mixed, tmp_path, ray_local):
    webdataset = pytest.importorskip("webdataset")
    arguments = ("--export_path", tmp_path / "ex", "--shard_images", 10, "--model_type", "sdxl")
    assert exported(mixed, "webdataset", *arguments) == 0
    shards = sorted((tmp_path / "ex").iterdir())
    assert [path.name for path in shards] == [f"shard-{number:06d}.tar" for number in range(3)]
    url = str(tmp_path / "ex" / "shard-{000000..000002}.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    there = {row["path"]: row for row in newest_rows(mixed) if row["status"] == "ok" and (mixed / row["path"]).exists()}
    assert len(samples) == len(there) == 32 - 2 - 1
    assert len({sample["__key__"] for sample in samples}) == 29
    for sample in samples:
        row = json.loads(sample["json"])
        assert sample["jpg"] == (mixed / row["path"]).read_bytes()
        for name in ("query_id", "prompt", "snapshot", "step", "seed"):
            assert row[name] == there[row["path"]][name]
    first = next(iter(webdataset.WebDataset(url, shardshuffle=False).decode("pil").to_tuple("jpg", "json")))
    assert (first[0].size, first[1]["query_id"]) == ((96, 64), 0)


def as_scripts_read(folder: Path) -> dict[str, int]:
    """How many images a retrieval script finds of each reference."""
    return dict(collections.Counter(path.name.split("_")[1] for path in (folder / "combined").iterdir()))


def test_ipcir_says_that_scripts_read_the_tree_and_whom_they_miss(output, capsys):
    assert exported(output, "ipcir") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "proxy_images_sdxl_step1: 5 references, 2 images each: scripts read it",
        "proxy_images_sdxl_step4: 5 references, 2 images each: scripts read it",
        "query 4: retrieval scripts find another query's images under its reference 100101",
        "for a tree with their images: --by_query --export_path FOLDER",
    ]


def test_ipcir_completes_a_tree_with_the_second_querys_images(output, tmp_path, capsys):
    before = read_tree(output)
    assert exported(output, "ipcir", "--by_query", "--export_path", tmp_path / "ex") == 0
    assert [path.name for path in (tmp_path / "ex").iterdir()] == ["query2"]
    for step in (1, 4):
        folder = f"proxy_images_sdxl_step{step}"
        assert as_scripts_read(tmp_path / "ex/query2" / folder) == as_scripts_read(output / folder)
        for path in (tmp_path / "ex/query2" / folder / "combined").iterdir():
            source = "combined_query4" if path.name.startswith("combined_100101_") else "combined"
            assert path.read_bytes() == before[f"{folder}/{source}/{path.name}"]
            assert path.samefile(output / folder / source / path.name)
    assert (
        before[f"{folder}/combined/combined_100101_0.jpg"] != before[f"{folder}/combined_query4/combined_100101_0.jpg"]
    )
    assert read_tree(output) == before


def test_ipcir_names_what_scripts_would_read_wrong(mixed, capsys):
    combined = mixed / "proxy_images_sdxl_step1/combined"
    shutil.copy(combined / "combined_r#0_0.jpg", combined / "combined_r#0_7.jpg")
    write_output(mixed, [20], ["xt"], [1], run_id="run-u", reference_img_id="a_b")
    for k in (0, 1):
        (combined / f"combined_r#20_{k}.jpg").rename(combined / f"combined_a_b_{k}.jpg")
    assert exported(mixed, "ipcir", "--steps", 1, "--snapshot", "xt", "--model_type", "sdxl") == 1
    out = capsys.readouterr().out
    assert "combined_r#0_7.jpg: not an image of the index; scripts read it as one of reference r#0" in out
    assert "combined_r#3_1.jpg: missing; reference r#3 has one image fewer" in out
    assert "combined_r#20_0.jpg: missing" in out
    assert exported(mixed, "ipcir", "--steps", 4, "--snapshot", "xt") == 1
    assert "combined_r#2_0.jpg: failed: OutOfMemory; reference r#2 has one image fewer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trajectories"], "--export_path: name the folder that --format trajectories writes"),
        (["ipcir", "--by_query"], "--export_path: name the folder that --format ipcir writes"),
        (["ipcir", "--export_path", "x"], "--export_path: --format ipcir takes none"),
        (["imagefolder", "--by_query", "--export_path", "x"], "--by_query: requires --format ipcir"),
        (["trajectories", "--export_path", "HERE"], "--export_path HERE: exists already; name a new or empty folder"),
        (["trajectories", "--export_path", "s3://b/x"], "--export_path s3://b/x: must be a local or mounted folder"),
        (["trajectories", "--export_path", "/proc/x"], "--export_path /proc/x: can't be written: "),
        (["trajectories", "--export_path", "x", "--shard_images", "0"], "--shard_images 0: must be from 1 to 1000000"),
        (["imagefolder", "--steps", "7"], "HERE/index: has no such image; set --output_base_path"),
        (["ipcir", "--steps", "7"], "HERE/index: has no image of sdxl or flux at --steps 7; set --output_base_path"),
    ],
)
def test_invalid_flags_are_refused(mixed, capsys, arguments, message):
    arguments = [text.replace("HERE", str(mixed)) for text in arguments]
    assert refusal(capsys, mixed, *arguments).startswith(message.replace("HERE", str(mixed)))


def test_an_empty_folder_is_refused(tmp_path, capsys):
    for kind in ("imagefolder", "ipcir"):
        assert refusal(capsys, tmp_path, kind).startswith(f"{tmp_path}/index: has no ")


def test_an_interrupted_export_leaves_nothing(mixed, tmp_path):
    """Ctrl-C while images are read: from a pipe that nobody writes to, so that it waits."""

    victim = mixed / "proxy_images_sdxl_step4/combined/combined_r#1_0.jpg"
    size = victim.stat().st_size
    victim.unlink()
    os.mkfifo(victim)
    for part in parts(mixed):  # the row says that the pipe is right
        table = pq.read_table(part, partitioning=None)
        rows = [
            row | ({"bytes": 0} if row["bytes"] == size and "r#1_0" in row["path"] else {}) for row in table.to_pylist()
        ]
        pq.write_table(table.from_pylist(rows, table.schema), part)
    command = ["--format", "trajectories", "--output_base_path", str(mixed), "--export_path", str(tmp_path / "ex")]
    process = start_cli("export", *command)
    begun = comes_true(lambda: list(tmp_path.glob(".ex.*/*.parquet")), 90)
    process.send_signal(signal.SIGINT)

    def let_go() -> bool:
        """Whether it has ended; a thread that reads from the pipe, now or soon, has to be let go before."""
        with contextlib.suppress(OSError):  # nobody reads
            os.close(os.open(victim, os.O_WRONLY | os.O_NONBLOCK))
        return process.poll() is not None

    wait_for("the export ends after Ctrl-C", let_go, 60)
    _, err = process.communicate(timeout=60)
    assert begun, f"no file was begun in 90 s: {err}"
    assert (process.returncode, err) == (130, "proxyqueue: interrupted\n")
    assert not [path for path in tmp_path.iterdir() if "ex" in path.name]


def test_the_bytes_are_those_of_the_images(output, tmp_path):
    assert exported(output, "trajectories", "--export_path", tmp_path / "ex", "--steps", 4) == 0
    digests = {row["sha256"] for row in newest_rows(output) if row["step"] == 4}
    table = pq.read_table(tmp_path / "ex")
    data = [row["xt_step_4"]["bytes"] for row in table.to_pylist()]
    assert {hashlib.sha256(image).hexdigest() for image in data} == digests
    assert all(Image.open(io.BytesIO(image)).size == (64, 64) for image in data)
