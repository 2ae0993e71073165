"""When rows become parts: by number, by age, and on every exit path."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.generator import OUTPUT_COLUMNS
from ray_app.errors import Refused
from ray_app.generation import metrics, worker
from ray_app.generation.writer import WRITTEN
from ray_app.index import part_writer, schema
from ray_app.index.partition import Partition
from ray_app.index.writer import IndexWriter
from ray_app.output.open import open_output
from tests.support.outputs import RECIPE, parts


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the writer sees, in seconds."""
    now = [1_000.0]
    monkeypatch.setattr(part_writer.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def writer(tmp_path) -> IndexWriter:
    return IndexWriter(open_output(str(tmp_path)).writer("run-1"), RECIPE)


def rows(count: int) -> pa.Table:
    return pa.table({"query_id": range(count), "status": ["ok"] * count})


def committed(output) -> list[int]:
    """Rows of each part."""
    return [pq.read_metadata(part).num_rows for part in parts(output)]


def test_a_row_waits_for_five_seconds_at_most(writer, clock, tmp_path):
    writer.append(rows(1))
    clock[0] += 4.9
    writer.append(rows(2))  # the oldest row counts
    writer.commit_if_due()
    assert committed(tmp_path) == []
    clock[0] += 0.1
    writer.commit_if_due()
    assert committed(tmp_path) == [3]
    clock[0] += 60
    writer.commit_if_due()
    assert committed(tmp_path) == [3]  # nothing waits


def test_five_thousand_rows_are_a_part(writer, clock, tmp_path):
    writer.append(rows(4_999))
    writer.commit_if_due()
    assert committed(tmp_path) == []
    writer.append(rows(1))
    writer.commit_if_due()
    assert committed(tmp_path) == [5_000]


def test_each_part_names_the_hardware_that_generated_its_images(writer, tmp_path):
    """A kind that comes later does not get into the part before."""
    for kind in ({"device": "A"}, {"device": "A"}, {"device": "B"}):
        writer.append(rows(1).append_column("hardware", pa.array([json.dumps(kind)])))
    writer.commit()
    first, second = (json.loads(pq.read_schema(part).metadata[schema.HARDWARE_KEY]) for part in parts(tmp_path))
    assert (first, second) == ([{"device": "A"}], [{"device": "A"}, {"device": "B"}])
    assert committed(tmp_path) == [2, 1]
    partition = Partition.open(open_output(str(tmp_path)), "sdxl")
    assert partition.hardware == [{"device": "A"}, {"device": "B"}]
    assert partition.damaged == {}


@pytest.mark.parametrize("error", [ValueError, Refused, KeyboardInterrupt, SystemExit])
def test_rows_are_committed_while_an_error_is_on_its_way(writer, tmp_path, error):
    writer.append(rows(3))
    with pytest.raises(error, match="why"), writer:
        raise error("why")
    assert committed(tmp_path) == [3]


def test_the_error_that_came_first_is_told_where_the_last_part_cannot_be_written(writer, tmp_path):
    writer.append(rows(3))
    (tmp_path / "index").write_text("a file in the way")
    with pytest.raises(ValueError, match="the first"), writer:
        raise ValueError("the first")


def test_a_last_part_that_cannot_be_written_is_told(writer, tmp_path):
    writer.append(rows(3))
    (tmp_path / "index").write_text("a file in the way")
    with pytest.raises(Refused, match="index"), writer:
        pass


def test_every_column_has_one_source_and_each_stage_brings_its_own():
    """What the generator returns, what leaves a worker, and what leaves the writer."""
    sources = (schema.SLOT, schema.PLAN, schema.GENERATOR, schema.WORKER, schema.WRITER, schema.RUN)
    assert sorted(name for source in sources for name in schema.names_from(source)) == sorted(schema.COLUMNS)
    assert {*OUTPUT_COLUMNS} == {*schema.names_from(schema.GENERATOR), "image", "encode_seconds"}
    of_worker = {*schema.names_from(schema.PLAN, schema.GENERATOR, schema.WORKER)}
    assert {*worker.SCHEMA.names} == of_worker | {"image", "slots", "encode_seconds", "idle_seconds", "hardware"}
    of_writer = of_worker | {*schema.names_from(schema.SLOT, schema.WRITER)}
    assert {*WRITTEN.names} == of_writer | {*metrics.MEASURED, "hardware"}
