"""The index: the pinned schema, parts that are whole or absent, what cannot be read."""

import dataclasses
import datetime
import os
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.recipe import Recipe
from ray_app.errors import Refused
from ray_app.index import part_writer
from ray_app.index.rows import quarantine_damaged, read_recipes, read_rows
from ray_app.index.schema import SCHEMA, VERSION_KEY
from ray_app.index.writer import IndexWriter
from ray_app.output.open import open_output
from tests.conftest import ROOT, flip_bit_of_a_page, obeying_permissions


def rows(count, **columns):
    return pa.table({"query_id": list(range(count)), **{name: [value] * count for name, value in columns.items()}})


@pytest.fixture
def files(tmp_path):
    return open_output(str(tmp_path)).writer("run-1")


@pytest.fixture
def recipe(recipe_for):
    return recipe_for(model_path="tiny")


def parts(files):
    return sorted(path.name for path in files.output.root.rglob("*.parquet"))


def test_a_part_has_the_pinned_schema_and_the_runs_constants(files, recipe):
    before = datetime.datetime.now(datetime.UTC)
    recipe = dataclasses.replace(recipe, guidance_scale=0.5)
    writer = IndexWriter(files, recipe)
    writer.append(rows(3, status="ok"))
    writer.commit()
    writer.commit()
    assert parts(files) == ["part-run-1-000000.parquet"]
    file = pq.ParquetFile(files.output.root / "index/model=sdxl/part-run-1-000000.parquet")
    assert file.schema_arrow.equals(SCHEMA)
    assert file.schema_arrow.metadata[b"proxyqueue.schema_version"] == b"1"
    (full,) = read_recipes(files.output, "sdxl").values()
    assert Recipe(**full) == recipe
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    row = file.read().to_pylist()[2]
    assert (row["query_id"], row["status"], row["model_path"], row["guidance_scale"]) == (2, "ok", "tiny", 0.5)
    assert (row["run_id"], row["prompt"]) == ("run-1", None)
    assert before <= row["created_at"] <= datetime.datetime.now(datetime.UTC)


def test_parts_are_committed_by_rows_and_by_time(files, recipe, monkeypatch):
    writer = IndexWriter(files, recipe)
    writer.append(rows(part_writer.COMMIT_ROWS - 1))
    writer.commit_if_due()
    assert parts(files) == []
    writer.append(rows(1))
    writer.commit_if_due()
    assert len(parts(files)) == 1
    monkeypatch.setattr(part_writer, "COMMIT_SECONDS", 0.05)
    writer.append(rows(1))
    time.sleep(0.06)
    writer.commit_if_due()
    assert len(parts(files)) == 2


def test_rows_are_read_oldest_first_with_the_requested_columns(files, recipe):
    for run_id, status in (("run-2", "failed"), ("run-1", "ok")):
        writer = IndexWriter(open_output(str(files.output.root)).writer(run_id), recipe)
        writer.append(rows(2, status=status))
        writer.commit()
    table = read_rows(files.output, "sdxl", ["query_id", "status"])
    assert table["status"].to_pylist() == ["failed", "failed", "ok", "ok"]
    assert table.column_names == ["query_id", "status", "created_at"]
    assert read_rows(files.output, "flux", ["query_id"]).num_rows == 0


def other_schema(path):
    pq.write_table(pa.table({"query_id": ["one"], "created_at": [None]}), path)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "its last byte gone": lambda path: os.truncate(path, path.stat().st_size - 1),
    "text": lambda path: path.write_text("not parquet at all" * 100),
    "a footer that is noise": lambda path: path.write_bytes(b"PAR1" + b"\xff" * 100 + b"\x10\0\0\0PAR1"),
    "another table": other_schema,
    "one bit of a page flipped": lambda path: flip_bit_of_a_page(path, "query_id"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_part_is_named_once_left_out_and_quarantined(files, recipe, capsys, damage):
    writer = IndexWriter(files, recipe)
    for _ in range(2):
        writer.append(rows(3, status="ok"))
        writer.commit()
    bad = files.output.root / "index/model=sdxl/part-run-1-000000.parquet"
    damage(bad)
    content = bad.read_bytes()
    for _ in range(2):
        assert read_rows(files.output, "sdxl", ["query_id"])["query_id"].to_pylist() == [0, 1, 2]
        assert len(read_recipes(files.output, "sdxl")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"proxyqueue: {bad}: a damaged part of the index (")
    assert bad.exists()
    quarantine_damaged(files.output, "sdxl")
    assert parts(files) == ["part-run-1-000000.parquet", "part-run-1-000001.parquet"]
    assert (files.output.root / ".set_aside/index/model=sdxl/part-run-1-000000.parquet").read_bytes() == content
    assert read_rows(files.output, "sdxl", ["query_id"]).num_rows == 3


def test_a_part_of_another_version_of_the_schema_is_refused_not_quarantined(files):
    files.write("index/model=sdxl/part-a.parquet", b"")
    newer = SCHEMA.with_metadata({VERSION_KEY: b"2"}).append(pa.field("more", pa.int8()))
    pq.write_table(newer.empty_table(), (files.output.root / "index/model=sdxl/part-a.parquet"))
    with pytest.raises(Refused, match=r"part-a.parquet: version 2 of the index's schema, and this proxyqueue reads 1;"):
        read_rows(files.output, "sdxl", ["query_id"])


def test_a_part_that_cannot_be_opened_is_refused_not_quarantined(files):
    """No permission says nothing about what is in the part."""
    files.write("index/model=sdxl/part-a.parquet", b"not parquet")
    (files.output.root / "index/model=sdxl/part-a.parquet").chmod(0)
    code = (
        "import sys\n"
        "from ray_app.errors import Refused\n"
        "from ray_app.output.open import open_output\n"
        "from ray_app.index.rows import read_rows\n"
        "try: read_rows(open_output(sys.argv[1]), 'sdxl', ['query_id'])\n"
        "except Refused as refused: print(refused)"
    )
    command = [*obeying_permissions(), sys.executable, "-c", code, str(files.output.root)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("part-a.parquet: can't be read: Permission denied\n"), result.stderr


def test_rows_stay_in_hand_while_a_part_cannot_be_written(files, recipe):
    writer = IndexWriter(files, recipe)
    writer.append(rows(2))
    (files.output.root / "index").write_text("a file where the folder should be")
    with pytest.raises(
        Refused, match=r"index/model=sdxl/part-run-1-000000.parquet: can't be written: .*/index is a file;"
    ):
        writer.commit()
    (files.output.root / "index").unlink()
    writer.commit()
    assert read_rows(files.output, "sdxl", ["query_id"]).num_rows == 2
