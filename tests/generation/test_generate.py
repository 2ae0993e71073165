"""The whole run on a real local Ray, in this process: what it writes, resumes, refuses and counts.

Where a model's pixels are not the subject, the actors run a worker without torch.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import ray.data

from actors.errors import ModelError, ModelNeedsMemory
from ray_app.cluster import connection
from ray_app.errors import OK, SOME_FAILED, Refused
from ray_app.generation import generate as command
from ray_app.generation.job import prepare
from ray_app.generation.options import Generate
from ray_app.generation.worker import ImageWorker
from ray_app.index.rows import read_rows
from ray_app.index.schema import SCHEMA
from ray_app.output.open import open_output
from ray_app.work_queue import queue
from ray_app.work_queue.queue import INIT_DEATHS
from tests.conftest import SAMPLE, flip_bit_of_a_page, read_tree
from tests.support.outputs import check_all_images_exist
from tests.support.processes import wait_for
from tests.support.synthetic import FAILS, FAULT, NEEDS_MEMORY, TRUNCATED, SyntheticWorker, TalkingWorker

pytestmark = pytest.mark.usefixtures("ray_local")

FLAGS = {
    "json_file": str(SAMPLE),
    "model_path": "tiny",
    "max_inference_steps": 4,
    "save_steps": ("1", "2", "4"),
    "num_prompts": 4,
}


def options(output: Path, **flags) -> Generate:
    return Generate(output_base_path=str(output), **{"num_workers": "1", **FLAGS, **flags})


def generate(asked: Generate, worker: type[ImageWorker] = SyntheticWorker) -> int:
    return command.generate(asked, worker)


def with_prompts(folder: Path, prompts: dict[tuple[int, int], str]) -> str:
    """The sample with other prompts, by place of the query and of the prompt; the file's path."""
    entries = json.loads(SAMPLE.read_text())
    for (query, prompt), text in prompts.items():
        entries[query]["multi_gpt-3.5_opt"][prompt] = text
    (folder / "test.json").write_text(json.dumps(entries))
    return str(folder / "test.json")


def last_record(output: Path) -> dict:
    return json.loads(max((output / "runs").iterdir()).read_text())


def rows(output: Path, model: str = "sdxl") -> list[dict]:
    return read_rows(open_output(str(output)), model, SCHEMA.names).to_pylist()


@pytest.fixture(scope="module")
def finished(ray_local, tmp_path_factory) -> Path:
    """An undisturbed run of the sample with two actors; copied by tests that change it."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert generate(options(output, num_workers="2")) == OK
    return output


@pytest.fixture
def output(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_every_slot_and_step_is_there_with_a_true_row(finished):
    images, written = read_tree(finished), rows(finished)
    assert len(images) == 6 * 4 * 3 == len(written)
    assert {row["path"] for row in written} == set(images)
    for row in written:
        data = images[row["path"]]
        assert (row["status"], row["bytes"], row["sha256"]) == ("ok", len(data), hashlib.sha256(data).hexdigest())


def test_the_tree_is_what_retrieval_scripts_read(finished):
    for step in (1, 2, 4):
        combined = finished / f"proxy_images_sdxl_step{step}" / "combined"
        by_reference: dict[str, int] = {}
        for path in combined.iterdir():
            reference = path.name.split("_")[1]
            by_reference[reference] = by_reference.get(reference, 0) + 1
        assert by_reference == dict.fromkeys(("100101", "100102", "100103", "100104", "100105"), 4)
        assert sorted(path.name for path in combined.with_name("combined_query4").iterdir()) == [
            f"combined_100101_{k}.jpg" for k in range(4)
        ]
    assert sorted(path.name for path in finished.iterdir()) == [
        "index",
        *(f"proxy_images_sdxl_step{step}" for step in (1, 2, 4)),
        "runs",
    ]


def test_equal_prompts_share_a_denoise_and_its_bytes(finished):
    shared = [row for row in rows(finished) if row["prompt"] == "A dog by the sea at sunset." and row["step"] == 4]
    assert {(row["query_id"], row["prompt_index"]) for row in shared} == {(0, 2), (5, 3)}
    assert len({row["denoise_id"] for row in shared}) == len({row["sha256"] for row in shared}) == 1
    assert len({row["sha256"] for row in rows(finished) if row["step"] == 4}) == 23


def test_the_record_tells_recipe_versions_counts_and_outcome(finished):
    record = last_record(finished)
    assert record["state"] == "complete"
    assert record["recipe"]["num_inference_steps"] == 4
    assert set(record["versions"]) >= {"ray", "torch", "diffusers", "proxyqueue"}
    assert record["started_at"] <= record["ended_at"]
    summary = record["summary"]
    assert (summary["queries"], summary["slots"], summary["denoises"]) == (6, 24, 23)
    assert (summary["duplicates_saved"], summary["images_written"], summary["steps_run"]) == (1, 72, 92)


def test_rows_carry_the_runs_columns(finished):
    (row,) = [row for row in rows(finished) if (row["query_id"], row["k"], row["step"]) == (2, 3, 2)]
    record = last_record(finished)
    assert row["run_id"] == record["run_id"]
    assert (row["model_path"], row["scheduler"], row["dtype"]) == ("tiny", "EulerAncestralDiscreteScheduler", "float32")
    assert (row["width"], row["height"], row["format"], row["batch_size"], row["seed"]) == (64, 64, "jpg", 4, 0)
    assert row["prompt"] == "Pancakes on a plate."
    assert len(row["actor_id"]) == 32
    assert len(row["node_id"]) == 56


def test_duckdb_reads_the_index_as_readme_says(finished):
    sql = f"SELECT model, step, count(*) FROM read_parquet('{finished}/index/**/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(f"{sql} GROUP BY ALL ORDER BY step").fetchall() == [
        ("sdxl", 1, 24),
        ("sdxl", 2, 24),
        ("sdxl", 4, 24),
    ]


def test_the_same_command_again_does_nothing(output, capsys):
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert generate(options(output)) == OK
    assert "nothing to generate: all 72 requested images exist" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_deleted_step_comes_back_alone_bit_for_bit_for_its_own_work(output, finished):
    shutil.rmtree(output / "proxy_images_sdxl_step2")
    kept = {path: path.stat().st_mtime_ns for path in output.rglob("combined*/*")}
    assert generate(options(output)) == OK
    assert read_tree(output) == read_tree(finished)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    summary = last_record(output)["summary"]
    assert (summary["images_written"], summary["images_skipped"], summary["steps_run"]) == (24, 48, 46)


def test_the_plan_of_a_deleted_step_costs_as_many_unet_calls(output):
    """The very batches that would go to the actors, through a generator whose UNet counts."""
    from actors.generator import ImageGenerator

    shutil.rmtree(output / "proxy_images_sdxl_step2")
    job = prepare(options(output))
    generator = ImageGenerator(job.recipe, job.plan.captures, threads=1)
    calls = []
    generator.model.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    for batch in job.plan.batches(job.recipe.batch_size):
        drawn = generator(batch.to_pydict())
        assert set(drawn["step"]) == {2}
    assert len(calls) == 2 * 6  # two steps, six batches of four for 23 denoises


@pytest.mark.timeout(300)
def test_what_was_deleted_is_generated_again_in_other_batches_bit_for_bit(tmp_path):
    """With the real tiny model, and steps that some slots miss and others don't."""
    output = tmp_path / "out"
    assert generate(options(output), ImageWorker) == OK
    before = read_tree(output)
    shutil.rmtree(output / "proxy_images_sdxl_step2")
    images = sorted((output / "proxy_images_sdxl_step4").rglob("*.jpg"))
    for path in images[::5]:
        path.unlink()
    images[1].write_bytes(b"cut short")
    assert generate(options(output), ImageWorker) == OK
    assert read_tree(output) == before


def test_more_prompts_and_steps_are_added_to_existing_images(output, finished):
    assert generate(options(output, num_prompts=5, save_steps=("1", "2", "3", "4"))) == OK
    images = read_tree(output)
    assert len(images) == 6 * 5 * 4
    assert {name: images[name] for name in read_tree(finished)} == read_tree(finished)


@pytest.mark.slow
def test_shares_meet_in_one_output(finished, tmp_path):
    for idx in range(2):
        assert generate(options(tmp_path / "out", idx=idx, gpu_num=2)) == OK
    assert read_tree(tmp_path / "out") == read_tree(finished)


def test_stale_feature_caches_go_with_the_images_they_were_made_of(output):
    stale = output / "proxy_images_sdxl_step2" / "aug_features_clip.npz"
    other = output / "proxy_images_sdxl_step4" / "aug_features_clip.npz"
    for path in (stale, other):
        path.write_bytes(b"features")
    next((output / "proxy_images_sdxl_step2" / "combined").iterdir()).unlink()
    seen: Path = output / "seen"

    class CacheWatcher(SyntheticWorker):
        """Notes whether the cache exists when it generates, and writes it, as a retrieval script would meanwhile."""

        def __call__(self, table: pa.Table) -> pa.Table:
            seen.write_text(str(stale.exists()))
            stale.write_bytes(b"features of the images before")
            return super().__call__(table)

    assert generate(options(output), CacheWatcher) == OK
    assert seen.read_text() == "False"
    assert not stale.exists()
    assert other.exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_snapshots_of_flux_in_png(tmp_path):
    flags = {"model_type": "flux", "snapshot": "both", "image_format": "png", "limit": 1, "img_per_prompt": 2}
    assert generate(options(tmp_path, **flags, seed_mode="slot"), ImageWorker) == OK
    images = read_tree(tmp_path)
    assert len(images) == 4 * 2 * 3 * 2
    for k in range(8):
        name = f"combined/combined_100101_{k}.png"
        assert images[f"proxy_images_flux_step4/{name}"] == images[f"proxy_images_flux_x0_step4/{name}"]
        assert images[f"proxy_images_flux_step1/{name}"] != images[f"proxy_images_flux_x0_step1/{name}"]
    assert len(set(images.values())) == 8 * 5


def test_a_prompt_that_fails_is_a_row_and_the_rerun_tries_it_again(tmp_path, capsys):
    prompts = {
        (1, 1): f"a {FAILS} wave",
        (3, 2): f"{FAILS}",
        (2, 0): f"long {TRUNCATED}",
        (4, 1): f"longer {TRUNCATED}",
    }
    asked = options(tmp_path / "out", json_file=with_prompts(tmp_path, prompts))
    for _ in range(2):
        assert generate(asked) == SOME_FAILED
        failed = {(row["query_id"], row["prompt_index"], row["step"]): row for row in rows(tmp_path / "out")}
        failed = {key: row for key, row in failed.items() if row["status"] == "failed"}
        assert set(failed) == {(query, prompt, step) for query, prompt in ((1, 1), (3, 2)) for step in (1, 2, 4)}
        assert (failed[1, 1, 4]["error_type"], failed[1, 1, 4]["sha256"]) == ("NonFiniteLatents", None)
        assert len(read_tree(tmp_path / "out")) == 66
    first, second = sorted((json.loads(path.read_text()) for path in (tmp_path / "out/runs").iterdir()),
                           key=lambda record: record["started_at"])  # fmt: skip
    assert (first["state"], second["state"]) == ("some failed", "some failed")
    assert (first["summary"]["images_failed"], first["summary"]["images_truncated"]) == (6, 6)
    assert (second["summary"]["images_failed"], second["summary"]["images_truncated"]) == (6, 0)
    assert "66 skipped, 6 failed" in capsys.readouterr().out


def test_failed_prompts_are_skipped_on_request(tmp_path, capsys):
    asked = options(tmp_path / "out", json_file=with_prompts(tmp_path, {(0, 0): FAILS}), limit=1)
    assert generate(asked) == SOME_FAILED
    before = rows(tmp_path / "out")
    capsys.readouterr()
    assert generate(dataclasses.replace(asked, skip_failed=True)) == SOME_FAILED
    assert (
        "nothing to generate: 9 of 12 requested images exist; 3 failed in an earlier run and"
        " are skipped (--skip_failed)" in capsys.readouterr().out
    )
    assert rows(tmp_path / "out") == before


def test_a_model_that_cannot_be_loaded_ends_the_run_with_one_line(tmp_path, models):
    folder = tmp_path / "model"
    shutil.copytree(models["sdxl_euler"], folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(Refused) as raised:
        generate(options(tmp_path / "out", model_path=str(folder), device="cpu"), ImageWorker)
    assert str(raised.value).startswith(f"{folder}: can't be loaded as sdxl: ")
    assert "\n" not in str(raised.value)
    assert last_record(tmp_path / "out")["state"] == "failed"


@pytest.mark.parametrize(("error", "loads"), [(ModelError, 1), (ModelNeedsMemory, INIT_DEATHS + 1)])
def test_only_a_lack_of_memory_is_tried_again_while_loading(tmp_path, error, loads):
    class Unloadable(SyntheticWorker):
        def load(self, *arguments: Any) -> Any:
            (tmp_path / f"load-{time.monotonic_ns()}").touch()
            raise error("model: can't be loaded as sdxl: the reason")

    with pytest.raises(Refused, match=r"^model: can't be loaded as sdxl: the reason$"):
        generate(options(tmp_path / "out"), Unloadable)
    assert len(list(tmp_path.glob("load-*"))) == loads == (1 if error is ModelError else 3)


def test_an_error_of_the_program_itself_ends_the_run_and_loses_no_row(tmp_path):
    with pytest.raises(Exception, match="a fault of the program"):
        generate(options(tmp_path / "out", json_file=with_prompts(tmp_path, {(4, 0): FAULT})))
    assert last_record(tmp_path / "out")["state"] == "failed"
    assert check_all_images_exist(tmp_path / "out") <= len(read_tree(tmp_path / "out")) < 72
    assert generate(options(tmp_path / "out")) == OK  # with the sample's own prompt there
    assert check_all_images_exist(tmp_path / "out") == len(read_tree(tmp_path / "out")) == 72


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Python collects no cycles by itself, as happens while a program waits."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
def test_runs_that_failed_leave_no_actor_that_the_next_would_wait_for(no_garbage_collection, tmp_path):
    """Each takes a CPU of this Ray, which has fewer than there are such runs here."""
    asked = options(tmp_path / "out", json_file=with_prompts(tmp_path, {(0, 0): FAULT}), limit=1)
    for _ in range(int(ray.cluster_resources()["CPU"]) + 1):
        with pytest.raises(Exception, match="a fault of the program"):
            generate(asked)


def test_results_that_nobody_takes_any_more_are_not_fetched(ray_local):
    results = queue.Results(ray.data.range(1_000, override_num_blocks=100), None)
    with contextlib.closing(results.tables()) as tables:
        assert next(table for table in tables if table is not None).num_rows == 10
    wait_for(
        "the thread that fetches results ends",
        lambda: queue.FETCHER not in [thread.name for thread in threading.enumerate()],
        60,
    )


def test_a_batch_whose_worker_is_killed_is_repeated_and_counted(finished, tmp_path):
    class KilledOnce(SyntheticWorker):
        """Dies with its first batch, before it can tell that the batch is done."""

        def _report(self, what: str, *arguments: Any) -> Any:
            if what == "end" and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._report(what, *arguments)

    assert generate(options(tmp_path / "out"), KilledOnce) == OK
    assert read_tree(tmp_path / "out") == read_tree(finished)
    assert last_record(tmp_path / "out")["summary"]["batches_replayed"] == 1


def test_notices_of_workers_are_shown_once_per_run(ray_local, tmp_path, capsys):
    flags = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("2",), "num_workers": "2"}
    options = Generate(json_file=str(SAMPLE), output_base_path=str(tmp_path), batch_size=1, **flags)
    assert generate(options, TalkingWorker) == OK
    said = capsys.readouterr().err.splitlines()
    assert said.count("proxyqueue: unet: 1 weights that it does not use") == 1
    assert last_record(tmp_path)["notices"] == ["unet: 1 weights that it does not use"]


def test_smaller_batches_for_lack_of_memory_are_said_once(tmp_path, capsys):
    prompts = {(0, 0): NEEDS_MEMORY, (3, 0): f"more {NEEDS_MEMORY}"}
    assert generate(options(tmp_path / "out", json_file=with_prompts(tmp_path, prompts))) == OK
    said = [line for line in capsys.readouterr().err.splitlines() if "ran out of memory" in line]
    assert len(said) == 1
    assert re.fullmatch(
        r"proxyqueue: worker \w{8} ran out of memory at 4 prompts; it generates [12] at a time from now on"
        r" \(low bits may differ\); use a smaller --batch_size",
        said[0],
    )


@pytest.mark.parametrize("shared_filesystem", [False, True])
def test_a_local_output_is_written_on_the_drivers_node_alone(tmp_path, monkeypatch, shared_filesystem):
    stages = []
    map_batches = ray.data.Dataset.map_batches

    def observed(dataset: Any, function: Any, **arguments: Any) -> Any:
        stages.append((function, arguments.get("label_selector")))
        return map_batches(dataset, function, **arguments)

    monkeypatch.setattr(ray.data.Dataset, "map_batches", observed)
    assert generate(options(tmp_path / "out", limit=1, shared_filesystem=shared_filesystem)) == OK
    (worker, anywhere), (_, written_on) = stages
    assert (worker, anywhere) == (SyntheticWorker, None)
    assert written_on == (None if shared_filesystem else {"ray.io/node-id": connection.node_id()})


def test_staging_that_a_late_writer_makes_again_is_removed_too(tmp_path):
    """Tasks of a run that was cut short end a moment after it."""
    output = tmp_path / "out"

    def write_late() -> None:
        wait_for("a file is staged", lambda: list(output.glob(".staging/*")), 60)
        (staging,) = output.glob(".staging/*")
        wait_for("staging is removed", lambda: not staging.exists(), 60)
        staging.mkdir(parents=True)
        (staging / "half").write_bytes(b"unfinished")

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(write_late)
        with pytest.raises(Exception, match="a fault of the program"):
            generate(options(output, json_file=with_prompts(tmp_path, {(0, 0): FAULT}), limit=1))
        late.result()
    assert not (output / ".staging").exists()


@pytest.mark.parametrize("batch_size", [None, "auto"])
def test_no_gpu_is_refused_at_once_with_what_to_do(batch_size, tmp_path, models):
    with pytest.raises(
        Refused,
        match=r"--gpus_per_actor 1: the largest node has 0 GPUs, .*; connect to a cluster with GPUs \(--address\)",
    ):
        generate(options(tmp_path, model_path=models["sdxl_euler"], batch_size=batch_size))


def test_another_recipe_in_the_output_is_refused(output):
    with pytest.raises(Refused, match=r"--guidance_scale: this output has 0.0, this run requests 5.0"):
        generate(options(output, guidance_scale=5.0))
    with pytest.raises(Refused, match="--image_format: this output has 'jpg', this run requests 'png'"):
        generate(options(output, image_format="png"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda part: os.truncate(part, part.stat().st_size // 2),
        lambda part: part.write_text("not a part of an index"),
        lambda part: flip_bit_of_a_page(part, "denoise_id"),
    ],
    ids=["cut short", "text", "a bit flipped"],
)
def test_a_damaged_part_is_quarantined_and_its_images_are_regenerated(output, finished, damage, capsys):
    part = min((output / "index").rglob("*.parquet"))
    lost = pa.parquet.read_metadata(part).num_rows
    damage(part)
    damaged = part.read_bytes()
    assert generate(options(output, dry_run=True)) == OK
    assert part.read_bytes() == damaged
    assert generate(options(output)) == OK
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("proxyqueue: ")]
    assert len(said) == 1
    assert said[0].startswith(f"proxyqueue: {part}: a damaged part of the index (")
    assert (output / ".set_aside" / part.relative_to(output)).read_bytes() == damaged
    assert read_tree(output) == read_tree(finished)
    assert check_all_images_exist(output) == 72
    assert last_record(output)["summary"]["images_written"] == lost
    sql = f"SELECT count(*) FROM read_parquet('{output}/index/**/*.parquet', hive_partitioning = true)"
    assert duckdb.sql(sql).fetchall() == [(72,)]


def test_an_output_that_cannot_be_written_under_way_ends_with_its_path(output):
    """A file stands where a step's folder should be: the images cannot be written, what was there stays true."""
    shutil.rmtree(output / "proxy_images_sdxl_step2")
    (output / "proxy_images_sdxl_step2").write_text("in the way")
    with pytest.raises(
        Refused, match=r"proxy_images_sdxl_step2/combined.*: can't be written: .*rerun the same command to resume"
    ):
        generate(options(output))
    (output / "proxy_images_sdxl_step2").unlink()
    assert generate(options(output)) == OK
    assert len(read_tree(output)) == 72


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert generate(options(tmp_path / "out", dry_run=True)) == OK
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out.splitlines() == [
        "queries          6",
        "slots            24 (23 unique)",
        "images           72 requested, 0 existing, 72 to generate",
        "denoises to do   23 (1 duplicates saved)",
        "steps to run     92 (a run for each step count: 168)",
    ]


def test_a_few_queries_of_the_real_annotations(circo_json, tmp_path):
    asked = options(tmp_path, json_file=circo_json, query_ids=(0, 251, 631), num_prompts=2)
    assert generate(asked) == OK
    assert len(read_tree(tmp_path)) == 3 * 2 * 3
    assert (tmp_path / "proxy_images_sdxl_step4/combined_query631/combined_304135_1.jpg").exists()


def test_schema_of_the_parts_is_the_pinned_one(finished):
    for part in (finished / "index").rglob("*.parquet"):
        assert pa.parquet.read_schema(part).equals(SCHEMA)
