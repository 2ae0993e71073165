"""The index: the pinned schema, parts that are whole or absent, what cannot be read."""

import dataclasses
import datetime
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.recipe import Recipe
from ray_app import index
from ray_app.errors import Refused
from ray_app.index import IndexWriter
from ray_app.storage import Storage


def rows(count, **columns):
    return pa.table({"query_id": list(range(count)), **{name: [value] * count for name, value in columns.items()}})


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path), "run-1")


@pytest.fixture
def recipe(recipe_for):
    return recipe_for(model_path="tiny")


def parts(storage):
    return sorted(path.name for path in storage.root.rglob("*.parquet"))


def test_a_part_has_the_pinned_schema_and_the_runs_constants(storage, recipe):
    before = datetime.datetime.now(datetime.UTC)
    recipe = dataclasses.replace(recipe, guidance_scale=0.5)
    writer = IndexWriter(storage, recipe)
    writer.append(rows(3, status="ok"))
    writer.commit()
    writer.commit()
    assert parts(storage) == ["part-run-1-000000.parquet"]
    file = pq.ParquetFile(storage.path("index/model=sdxl/part-run-1-000000.parquet"))
    assert file.schema_arrow.equals(index.SCHEMA)
    assert file.schema_arrow.metadata[b"proxyqueue.schema_version"] == b"1"
    (full,) = index.recipes(storage, "sdxl").values()
    assert Recipe(**full) == recipe
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    row = file.read().to_pylist()[2]
    assert (row["query_id"], row["status"], row["model_path"], row["guidance_scale"]) == (2, "ok", "tiny", 0.5)
    assert (row["run_id"], row["prompt"]) == ("run-1", None)
    assert before <= row["created_at"] <= datetime.datetime.now(datetime.UTC)


def test_parts_are_committed_by_rows_and_by_time(storage, recipe, monkeypatch):
    writer = IndexWriter(storage, recipe)
    writer.append(rows(index.COMMIT_ROWS - 1))
    writer.commit_if_due()
    assert parts(storage) == []
    writer.append(rows(1))
    writer.commit_if_due()
    assert len(parts(storage)) == 1
    monkeypatch.setattr(index, "COMMIT_SECONDS", 0.05)
    writer.append(rows(1))
    time.sleep(0.06)
    writer.commit_if_due()
    assert len(parts(storage)) == 2


def test_rows_come_back_oldest_first_with_the_columns_asked_for(storage, recipe):
    for run_id, status in (("run-2", "failed"), ("run-1", "ok")):
        writer = IndexWriter(Storage(str(storage.root), run_id), recipe)
        writer.append(rows(2, status=status))
        writer.commit()
    table = index.read(storage, "sdxl", ["query_id", "status"])
    assert table["status"].to_pylist() == ["failed", "failed", "ok", "ok"]
    assert table.column_names == ["query_id", "status", "created_at"]
    assert index.read(storage, "flux", ["query_id"]).num_rows == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_part_that_cannot_be_read_is_named(storage, recipe, content):
    writer = IndexWriter(storage, recipe)
    writer.append(rows(1))
    writer.commit()
    storage.path("index/model=sdxl/part-cut.parquet").write_bytes(content)
    with pytest.raises(Refused, match=r"part-cut\.parquet: not a readable part of the index"):
        index.read(storage, "sdxl", ["query_id"])


def test_rows_stay_in_hand_while_a_part_cannot_be_written(storage, recipe):
    writer = IndexWriter(storage, recipe)
    writer.append(rows(2))
    (storage.root / "index").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="index"):
        writer.commit()
    (storage.root / "index").unlink()
    writer.commit()
    assert index.read(storage, "sdxl", ["query_id"]).num_rows == 2
