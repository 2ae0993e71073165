"""query: the views say what the index says, each format round-trips, and SQL reaches nothing but the index."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
from pathlib import Path

import duckdb
import pandas
import pyarrow.parquet as pq
import pytest

from ray_app.cli import main
from ray_app.output.open import open_output
from ray_app.query import views
from ray_app.query.query import PRESETS
from tests.conftest import ROOT, flip_bit_of_a_page, run_cli, start_cli
from tests.support.outputs import RECIPE, parts, running, write_images
from tests.support.processes import comes_true

FLUX = dataclasses.replace(RECIPE, model_type="flux")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Sixty sdxl images in small parts, some generated again, some that failed, and ten of flux."""
    output = tmp_path_factory.mktemp("query") / "out"
    write_images(output, "run-1", range(30), status="failed")
    write_images(output, "run-2", range(28))
    write_images(output, "run-3", range(5), text="redrawn")
    write_images(output, "run-4", range(5), recipe=FLUX)
    return output


@pytest.fixture
def output(template, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(template, tmp_path / "out"))


def asked(output, *arguments):
    return main(["query", "--output_base_path", str(output), *arguments])


def rows(output, capsys, sql):
    assert asked(output, sql, "--format", "json") == 0
    return json.loads(capsys.readouterr().out)


def refusal(output, capsys, *arguments):
    assert asked(output, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("proxyqueue: ").strip()


def test_images_are_the_newest_row_of_each_key(output, capsys):
    counts = rows(output, capsys, "SELECT model, status, count(*) AS n FROM images GROUP BY ALL ORDER BY ALL")
    assert counts == [
        {"model": "flux", "status": "ok", "n": 10},
        {"model": "sdxl", "status": "failed", "n": 4},
        {"model": "sdxl", "status": "ok", "n": 56},
    ]
    redrawn = "SELECT DISTINCT run_id FROM images WHERE query_id = 3 AND model = 'sdxl'"
    assert rows(output, capsys, redrawn) == [{"run_id": "run-3"}]


def test_an_output_whose_name_is_a_pattern_is_read(tmp_path, capsys):
    output = tmp_path / "a[b]=*'c"
    write_images(output, "run-1", range(3))
    assert rows(output, capsys, "SELECT count(*) AS n FROM images") == [{"n": 6}]


def test_only_the_requested_partition_is_read(output):
    """The pages of the other one are spoilt once DuckDB knows its parts."""
    with views.connected(open_output(str(output))) as connection:
        for part in parts(output, "flux"):
            size = sum(pq.read_metadata(part).row_group(0).column(n).total_compressed_size for n in range(36))
            with part.open("r+b") as file:
                file.seek(4)
                file.write(bytes(size - 4))
        sql = "SELECT count(*) FROM images WHERE model = '{}'"
        assert connection.execute(sql.format("sdxl")).fetchall() == [(60,)]
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT sum(bytes), max(path) FROM images").fetchall()


def test_an_answer_outlives_compaction(output, capsys, monkeypatch):
    """The parts go after they were listed, as often as not."""
    listed = views._partitions

    def compacted_meanwhile(storage):
        found = listed(storage)
        if len(parts(output)) > 1:
            assert main(["compact", "--output_base_path", str(output)]) == 0
            capsys.readouterr()
        return found

    monkeypatch.setattr(views, "_partitions", compacted_meanwhile)
    assert rows(output, capsys, "SELECT count(*) AS n, sum(bytes) IS NULL AS none FROM images") == [
        {"n": 70, "none": False}
    ]


def test_runs_are_the_records(output, capsys):
    running(open_output(str(output)).writer("20260101T000000-abc"), os.getpid())
    (output / "runs" / "20260102T000000-abc.json").write_text(
        json.dumps(
            {
                "run_id": "20260102T000000-abc", "state": "complete", "started_at": "2026-01-02T00:00:00+00:00",
                "ended_at": "no time", "pid": "x", "options": {"seed": 7}, "summary": {"images_written": 5},
            }
        )
    )  # fmt: skip
    sql = "SELECT state, year(started_at) AS y, ended_at, pid, options ->> 'seed' AS seed, images_written FROM runs"
    first, second = rows(output, capsys, sql)
    assert (first["state"], first["pid"], first["images_written"]) == ("running", os.getpid(), None)
    assert second == {
        "state": "complete", "y": 2026, "ended_at": None, "pid": None, "seed": "7", "images_written": 5
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT * FROM read_csv('/etc/passwd')", "line 1 column 15: Cannot access file"),
        ("SELECT * FROM read_text('/etc/hostname')", "Cannot access file"),
        ("SELECT * FROM glob('/*')", "Cannot access file"),
        ("SELECT * FROM '/etc/passwd'", "/etc/passwd does not exist"),
        ("SELECT * FROM read_parquet('OUTPUT/other.parquet')", "Cannot access file"),
        ("SELECT * FROM read_text('OUTPUT/runs/*.json')", "Cannot access file"),
        ("SELECT * FROM 'https://example.org/a.parquet'", "Cannot access file"),
        ("SELECT * FROM 's3://bucket/a.parquet'", "Cannot access file"),
        ("SELECT * FROM sqlite_scan('a.db', 't')", ""),
        ("SELECT * FROM query('COPY (SELECT 1) TO ''OUTPUT/x.csv''')", ""),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'OUTPUT/x.csv'", "Cannot access file"),
        ("COPY images TO 'OUTPUT/x.csv'", "COPY is not allowed"),
        ("ATTACH 'OUTPUT/x.db'", "ATTACH is not allowed"),
        ("INSTALL httpfs", "LOAD is not allowed"),
        ("LOAD httpfs", "LOAD is not allowed"),
        ("SET enable_external_access = true", "SET is not allowed"),
        ("PRAGMA enable_external_access = true", "is not allowed"),
        ("CREATE TABLE t AS SELECT 1", "CREATE is not allowed"),
        ("DELETE FROM runs", "DELETE is not allowed"),
        ("EXPORT DATABASE 'OUTPUT/x'", "EXPORT is not allowed"),
        ("SELECT 1; SELECT 2", "2 statements"),
    ],
)
def test_sql_reaches_nothing_but_the_index(output, capsys, sql, reason):
    (output / "other.parquet").write_bytes(parts(output)[0].read_bytes())
    before = sorted(output.rglob("*"))
    assert reason in refusal(output, capsys, sql.replace("OUTPUT", str(output)))
    assert sorted(output.rglob("*")) == before


@pytest.mark.parametrize("setting", ["enable_external_access = true", "allowed_paths = ['/etc/passwd']", "threads = 1"])
def test_nothing_unlocks_it_even_without_the_list_of_statements(output, setting):
    with views.connected(open_output(str(output))) as connection:
        for sql in (f"SET {setting}", "INSTALL httpfs", "LOAD httpfs", f"COPY runs TO '{output}/x.csv'"):
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
        local = [1]  # a name of the program is no table
        with pytest.raises(duckdb.CatalogException):
            connection.execute("SELECT * FROM local")
        assert local


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", 'SQL: line 1 column 1: syntax error at or near "SELEC" (at: SELEC 1)'),
        ("SELECT step,\n  'é', nope FROM images", 'SQL: line 2 column 8: Referenced column "nope" not found'),
        ("SELECT * FROM photos", "SQL: line 1 column 15: Table with name photos does not exist!"),
        ("SELECT prompt::INT FROM images", "SQL: line 1 column 14: Could not convert string"),
    ],
)
def test_an_error_is_one_line_with_its_place(output, capsys, sql, message):
    assert refusal(output, capsys, sql).startswith(message)


def test_each_format_holds_the_same_rows(output, capsys, tmp_path):
    sql = """SELECT model, query_id, sum(bytes) AS bytes, list(step ORDER BY step) AS steps, any_value(error_type) AS e,
             max(created_at) AS at FROM images WHERE model = 'sdxl' GROUP BY ALL ORDER BY ALL LIMIT 3"""
    found = rows(output, capsys, sql)
    assert [(row["query_id"], row["steps"], row["e"]) for row in found] == [(n, [1, 4], None) for n in range(3)]
    asked(output, sql, "--format", "csv")
    text = capsys.readouterr().out
    from_csv = list(csv.DictReader(io.StringIO(text)))
    assert [(int(row["bytes"]), json.loads(row["steps"]), row["at"]) for row in from_csv] == [
        (row["bytes"], row["steps"], row["at"]) for row in found
    ]
    for name in ("a.parquet", "a.csv", "a.json", "a.txt"):
        assert asked(output, sql, "--output", str(tmp_path / name)) == 0
    assert capsys.readouterr().out == ""
    from_parquet = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(int(row["bytes"]), row["steps"], row["at"].isoformat()) for row in from_parquet] == [
        (row["bytes"], row["steps"], row["at"]) for row in found
    ]
    assert (tmp_path / "a.csv").read_text() == text
    assert json.loads((tmp_path / "a.json").read_text()) == found
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert lines[0].split() == ["model", "query_id", "bytes", "steps", "e", "at"]
    assert lines[2].split()[:2] == ["sdxl", "0"]
    assert not list(tmp_path.glob(".a*"))


def test_the_terminal_gets_a_hundred_rows(output, capsys):
    assert asked(output, "SELECT * FROM range(250)") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (103, "and 150 more rows: --format csv shows all")


def test_a_file_that_cannot_be_written_stays_as_it_was(output, capsys, tmp_path):
    (tmp_path / "a.csv").write_text("before")
    failing = "SELECT CASE WHEN i < 30000 THEN 1 ELSE error('stop') END FROM range(60000) t(i)"
    assert "stop" in refusal(output, capsys, failing, "--output", str(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text() == "before"
    assert not list(tmp_path.glob(".a*"))
    assert refusal(output, capsys, "SELECT 1", "--output", str(tmp_path / "no" / "a.csv")) == (
        f"--output {tmp_path}/no/a.csv: its folder does not exist"
    )


def test_damaged_parts_are_named_and_their_rows_do_not_count(output, capsys):
    """One that was cut, and one with a flipped bit that DuckDB itself would not notice."""
    cut, flipped = parts(output)[-1], parts(output)[-2]
    rows_of = {part: pq.read_metadata(part).num_rows for part in (cut, flipped)}
    cut.write_bytes(cut.read_bytes()[:-40])
    flip_bit_of_a_page(flipped, "sha256")
    sql = "SELECT count(*) FROM images WHERE run_id = 'run-3'"
    result = run_cli("query", "--output_base_path", str(output), "--format", "csv", sql)
    assert result.returncode == 0
    assert result.stdout == f"count_star()\n{10 - sum(rows_of.values())}\n"
    assert [line.split(": a damaged part")[0] for line in result.stderr.splitlines()] == [
        f"proxyqueue: {part}" for part in (cut, flipped)
    ]


def test_a_part_that_duckdb_cannot_read_is_found_in_a_large_index_too(output, capsys, monkeypatch):
    monkeypatch.setattr(views, "CHECKED_ROWS", 0)
    for column in ("path", "query_id"):
        flip_bit_of_a_page(parts(output)[0], column)
    data = bytearray(parts(output)[0].read_bytes())
    data[100:2000] = bytes(1900)
    parts(output)[0].write_bytes(data)
    whole = [*parts(output)[1:], *parts(output, "flux")]
    expected = {path for part in whole for path in pq.read_table(part, partitioning=None)["path"].to_pylist()}
    assert asked(output, "SELECT count(DISTINCT path) FROM images", "--format", "csv") == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"proxyqueue: {parts(output)[0]}: a damaged part of the index (")
    assert err.count("\n") == 1
    assert out == f"count(DISTINCT path)\n{len(expected)}\n"


def test_of_a_large_index_the_pages_that_are_read_are_compared_with_their_checksums(output, capsys, monkeypatch):
    """DuckDB itself does not notice a flipped bit."""
    monkeypatch.setattr(views, "CHECKED_ROWS", 0)
    flipped = parts(output, "flux")[0]
    lost = pq.read_metadata(flipped).num_rows
    flip_bit_of_a_page(flipped, "sha256")
    assert rows(output, capsys, "SELECT count(*) AS n FROM images WHERE model = 'flux'") == [{"n": 10}]
    assert asked(output, "SELECT count(DISTINCT sha256) AS n FROM images WHERE model = 'flux'", "--format", "json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [{"n": 10 - lost}]
    assert err.startswith(f"proxyqueue: {flipped}: a damaged part of the index (")


def test_the_presets_answer(drawn, output, capsys):
    answers = {}
    for name in PRESETS:
        assert asked(drawn, "--preset", name, "--format", "json") == 0
        answers[name] = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["images"], row["failed"]) for row in answers["steps"]] == [(1, 12, 0), (4, 12, 0)]
    assert answers["failures"] == []
    assert [(row["step"], row["denoises"]) for row in answers["timing"]] == [(1, 12), (4, 12)]
    assert all(0 < row["median"] <= row["p95"] for row in answers["timing"])
    assert answers["duplicates"] == []
    assert [(row["reference_img_id"], row["query_ids"], row["folders"]) for row in answers["shared_references"]] == [
        ("100101", [0, 4], ["combined", "combined_query4"])
    ]
    assert asked(output, "--preset", "failures", "--format", "json") == 0
    failures = json.loads(capsys.readouterr().out)
    assert [(row["query_id"], row["steps"], row["prompt"]) for row in failures] == [
        (28, [1, 4], "p28"), (29, [1, 4], "p29")
    ]  # fmt: skip


def test_the_schema_names_every_column_of_the_views(output, capsys):
    assert asked(output, "--schema") == 0
    printed = re.findall(r"^  (\w+)", capsys.readouterr().out, flags=re.MULTILINE)
    with views.connected(open_output(str(output))) as connection:
        there = [
            row[0]
            for view in ("images", "features", "runs")
            for row in connection.execute(f"DESCRIBE {view}").fetchall()
        ]
    assert sorted(printed) == sorted(there)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "query: give exactly one of SQL, --preset and --schema (see proxyqueue query --help)"),
        (["SELECT 1", "--preset", "steps"], "query: give exactly one of"),
        ([" "], "query: the SQL is empty"),
        (["SELECT 1", "--format", "parquet"], "--format parquet: name a file with --output"),
        (["SELECT 1", "--format", "xml"], "--format xml: no such value; take one of table, csv, json, parquet"),
    ],
)
def test_invalid_flags_are_refused(output, capsys, arguments, message):
    assert refusal(output, capsys, *arguments).startswith(message)


def test_an_output_without_an_index_is_refused(tmp_path, capsys):
    assert refusal(tmp_path, capsys, "SELECT 1") == (f"{tmp_path}/index: no index; set --output_base_path")


def test_an_index_of_damaged_parts_alone_has_no_rows(tmp_path, capsys):
    write_images(tmp_path, "run-1", range(2))
    parts(tmp_path)[0].write_bytes(b"x")
    assert asked(tmp_path, "SELECT count(*) AS n FROM images", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"n": 0}]


def _cpu_seconds_of_threads(pid: int) -> float:
    """What all threads but the first have used: DuckDB's, not the imports."""
    used = 0.0
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        if stat.parent.name != str(pid):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def test_ctrl_c_stops_a_long_query(output):
    process = start_cli(
        "query", "--output_base_path", str(output), "SELECT sum(hash(i)) FROM range(1000000000000) t(i)"
    )
    try:
        begun = comes_true(lambda: process.poll() is not None or _cpu_seconds_of_threads(process.pid) > 0.3, 90)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert begun, "the query has used no CPU after 90 s"
    assert (process.returncode, out) == (130, "")
    assert err == "proxyqueue: interrupted\n"


@pytest.mark.parametrize("library", ["pandas", "polars", "Ray Data"])
def test_the_index_is_read_without_proxyqueue(library, output, tmp_path, request):
    """Each block of the page leaves its answer in `failed`: the images whose newest row says so.

    Wherever OUTPUT stands, and whatever the folders above it are called.
    """
    above = tmp_path / "seed=5" / "step=9" / "model=turbo"
    above.mkdir(parents=True)
    output = output.rename(above / "out")
    if library == "Ray Data":
        assert main(["compact", "--output_base_path", str(output)]) == 0
        request.getfixturevalue("ray_local")
    text = (ROOT / "docs" / "index-and-queries.md").read_text()
    (block,) = re.findall(rf"```python\n(# {library}\b.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    exec(block.replace("OUTPUT", str(output)), names)
    failed = names["failed"]
    if library == "polars":
        failed = failed.to_pandas()
    found = failed[["model", "query_id", "step"]].sort_values(["query_id", "step"])
    expected = [("sdxl", query, step) for query in (28, 29) for step in (1, 4)]
    assert list(found.astype({"model": str}).itertuples(index=False, name=None)) == expected
    assert isinstance(failed, pandas.DataFrame)
