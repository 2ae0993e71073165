"""Compaction: few sorted parts with the newest rows, safe against readers, writers and SIGKILL."""

import dataclasses
import datetime
import errno
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.recipe import Recipe
from ray_app.cli import main
from ray_app.index import partition
from ray_app.index.rows import find_newest, read_recipes, read_rows
from ray_app.index.schema import KEY, SCHEMA
from ray_app.maintenance import rewrite
from ray_app.output import local as local_storage
from ray_app.output.open import open_output
from tests.conftest import flip_bit_of_a_page, run_cli
from tests.support.outputs import RECIPE, check_index_is_true, kill_and_repeat, newest_rows, parts, write_images


@pytest.fixture
def output(tmp_path):
    """Sixty images in parts of eight, twenty of them failed before, ten generated again.

    The newest parts' names come first, and the queries are in no order, within the parts and across them.
    """
    output = tmp_path / "out"
    write_images(output, "run-3", range(10), status="failed")
    in_no_order = sorted(range(30), key=lambda query: query * 7 % 30)
    write_images(output, "run-2", in_no_order, recipe=dataclasses.replace(RECIPE, batch_size=8))
    write_images(output, "run-1", range(5), text="redrawn")
    return output


def compacted(output):
    return main(["compact", "--output_base_path", str(output)])


def test_few_sorted_parts_hold_what_a_reader_saw_before(output, capsys):
    before = newest_rows(output)
    assert len(parts(output)) == 13
    assert compacted(output) == 0
    assert capsys.readouterr().out == "sdxl             90 rows in 13 parts are now 60 in 1\n"
    (part,) = parts(output)
    table = pq.read_table(part, partitioning=None)
    assert table.to_pylist() == before
    keys = list(zip(*(table[name].to_pylist() for name in KEY), strict=True))
    assert keys == sorted(set(keys))
    assert pq.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_schema(part).equals(SCHEMA)
    assert not (output / ".staging").exists()


def test_the_recipes_of_all_parts_go_with_the_rows(output):
    assert compacted(output) == 0
    recipes = [Recipe(**recipe) for recipe in read_recipes(open_output(str(output)), "sdxl").values()]
    assert {recipe.batch_size for recipe in recipes} == {RECIPE.batch_size, 8}


def test_what_is_compact_already_is_not_written_again(output):
    assert compacted(output) == 0
    (part,) = parts(output)
    before = part.name, part.stat().st_mtime_ns
    assert compacted(output) == 0
    assert [(part.name, part.stat().st_mtime_ns) for part in parts(output)] == [before]


def test_a_single_part_out_of_order_is_sorted(tmp_path, capsys):
    write_images(tmp_path, "run-1", [2, 0, 1])
    before = newest_rows(tmp_path)
    assert compacted(tmp_path) == 0
    assert capsys.readouterr().out == "sdxl             6 rows in 1 parts are now 6 in 1\n"
    (part,) = parts(tmp_path)
    assert pq.read_table(part, partitioning=None).to_pylist() == before


def test_a_flipped_bit_of_a_compacted_part_is_found(output, capsys):
    """By the checksum of its page: zstd alone would give another sha256."""
    assert compacted(output) == 0
    (part,) = parts(output)
    flip_bit_of_a_page(part, "sha256")
    assert newest_rows(output) == []
    err = capsys.readouterr().err
    assert err.startswith(f"proxyqueue: {part}: a damaged part of the index (")
    assert "CRC checksum verification failed" in err


def test_new_parts_survive_a_power_cut_before_old_ones_go(output, monkeypatch):
    """Each new part, then the folder with all their names are synced while every old part is still in it."""
    folder, old, synced, real = output / "index/model=sdxl", parts(output), [], os.fsync

    def fsync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path, set(folder.glob("*.parquet"))))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(rewrite, "ROWS_A_PART", 25)
    assert compacted(output) == 0
    new = parts(output)
    assert (len(new), set(new) & set(old)) == (3, set())
    *of_parts, of_folder = synced
    assert sorted(path for path, _ in of_parts) == new
    assert all(path in there and there.issuperset(old) for path, there in of_parts)
    assert of_folder == (folder, {*old, *new})


def test_parts_of_bounded_size_are_sorted_across(output, monkeypatch):
    monkeypatch.setattr(rewrite, "ROWS_A_PART", 25)
    before = newest_rows(output)
    assert compacted(output) == 0
    tables = [pq.read_table(part, partitioning=None) for part in parts(output)]
    assert [table.num_rows for table in tables] == [25, 25, 10]
    assert pa.concat_tables(tables).to_pylist() == before


def test_each_model_has_its_own_parts(output, capsys):
    write_images(output, "run-f", range(9), recipe=dataclasses.replace(RECIPE, model_type="flux"))
    assert main(["compact", "--output_base_path", str(output), "--model_type", "flux"]) == 0
    assert capsys.readouterr().out == "flux             18 rows in 3 parts are now 18 in 1\n"
    assert (len(parts(output)), len(parts(output, "flux"))) == (13, 1)
    check_index_is_true(output)


def test_a_part_that_appears_meanwhile_is_left_alone(output):
    """It comes after the old parts were read: while rows to drop are chosen."""

    def drop(rows):
        write_images(output, f"run-late-{len(parts(output))}", [100], text="late")
        return np.asarray(rows["query_id"]) == 7

    done = rewrite.rewrite(open_output(str(output)).writer("rewriter"), "sdxl", drop)
    assert done.dropped == 2
    queries = [row["query_id"] for row in newest_rows(output)]
    assert queries == sorted([*(q for q in range(30) if q != 7), 100] * 2)
    assert sum("late" in part.name for part in parts(output)) >= 1
    assert check_index_is_true(output) >= {"proxy_images_sdxl_step1/combined/combined_r100_0.jpg"}


def test_a_damaged_part_is_named_and_left_alone(output, capsys):
    damaged = parts(output)[4]
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2])
    assert compacted(output) == 0
    assert capsys.readouterr().err.startswith(
        f"proxyqueue: {damaged}: not compacted, can't be read: Parquet magic bytes"
    )
    assert damaged in parts(output)
    assert len(parts(output)) == 2


def test_a_listing_during_which_parts_are_replaced_is_not_believed(output, monkeypatch):
    """It names neither the new part, which was not there when it began, nor the old ones, which are gone at its end."""
    scan, listings = local_storage._scan, []

    def compacted_meanwhile(folder):
        found = list(scan(folder))
        if str(folder).endswith("index/model=sdxl"):
            listings.append(len(found))
            if len(listings) == 1:
                assert compacted(output) == 0
        yield from found

    monkeypatch.setattr(local_storage, "_scan", compacted_meanwhile)
    names = partition.part_names(open_output(str(output)), "sdxl")
    assert listings[0] == 13
    assert names == [path.relative_to(output).as_posix() for path in parts(output)]
    assert len(names) == 1


def test_readers_never_miss_a_row(tmp_path):
    """A reader in a thread, over and over, while forty parts become one again and again."""
    output = tmp_path / "out"
    write_images(output, "run-0", range(80), rows_per_part=4)
    files, seen, ended = open_output(str(output)).writer("writer"), [], threading.Event()

    def read():
        try:
            while not ended.is_set():
                rows = read_rows(files.output, "sdxl", KEY)
                seen.append((len(find_newest(rows)), len(read_recipes(files.output, "sdxl"))))
        except Exception as error:
            seen.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    kept = {part.name: part.read_bytes() for part in parts(output)}
    try:
        for _ in range(6):
            for name, data in kept.items():
                files.write(f"index/model=sdxl/{name}", data)
            assert compacted(output) == 0
    finally:
        ended.set()
        reader.join()
    assert len(seen) > 3
    assert set(seen) == {(160, 1)}


def test_only_one_process_rewrites_an_index(output, capsys):
    with open_output(str(output)).locked("index/model=sdxl"):
        assert compacted(output) == 2
    assert capsys.readouterr().err == (
        f"proxyqueue: {output}/index/model=sdxl: another compact, clean or verify --repair is rewriting it;"
        " wait for its end\n"
    )
    assert len(parts(output)) == 13
    assert compacted(output) == 0


def test_an_output_without_an_index_is_refused(tmp_path, capsys):
    assert compacted(tmp_path) == 2
    assert capsys.readouterr().err == (f"proxyqueue: {tmp_path}/index: no index; set --output_base_path\n")


def test_a_kill_at_any_moment_loses_no_row_and_the_next_run_ends_it(output, tmp_path):
    before = newest_rows(output)

    def check_rows(copy):
        assert newest_rows(copy) == before

    for copy in kill_and_repeat(output, tmp_path, "compact", "--output_base_path", "OUTPUT", check=check_rows):
        check_rows(copy)
        assert len(parts(copy)) == 1


def test_of_two_rows_the_one_of_the_later_run_counts_whatever_the_clock_said(output):
    """A clock that was a day ahead stamped the failures of query 7; it was set back before the image was generated."""
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    write_images(output, "run-4", [7], status="failed")
    (part,) = (part for part in parts(output) if "run-4" in part.name)
    table = pq.read_table(part, partitioning=None)
    stamped = pa.repeat(pa.scalar(tomorrow, table.schema.field("created_at").type), table.num_rows)
    place = table.schema.get_field_index("created_at")
    pq.write_table(table.set_column(place, table.schema.field("created_at"), stamped), part)
    write_images(output, "run-5", [7], text="at last")
    for _ in range(2):
        (first, second) = (row for row in newest_rows(output) if row["query_id"] == 7)
        assert (first["status"], second["status"]) == ("ok", "ok")
        assert tomorrow < first["created_at"] <= second["created_at"] < tomorrow + datetime.timedelta(seconds=1)
        assert len(check_index_is_true(output)) == 60
        assert compacted(output) == 0


FSYNC = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
int fsync(int descriptor) {
    struct stat found;
    int folder = !fstat(descriptor, &found) && S_ISDIR(found.st_mode);
    if (folder == !getenv("FSYNC_FILES")) { errno = atoi(getenv("FSYNC_ERROR")); return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
}
"""
"""A C library whose fsync fails for folders, as on CIFS and FUSE; for files instead where FSYNC_FILES is set."""


@pytest.fixture
def fsync(tmp_path):
    if not shutil.which("cc"):
        pytest.skip("no C compiler, cc, to make a filesystem's error with")
    (tmp_path / "fsync.c").write_text(FSYNC)
    command = ["cc", "-shared", "-fPIC", "-o", tmp_path / "fsync.so", tmp_path / "fsync.c", "-ldl"]
    subprocess.run(command, check=True)
    return str(tmp_path / "fsync.so")


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP])
def test_a_filesystem_that_cannot_sync_folders_is_no_reason_not_to_compact(output, fsync, error):
    before = newest_rows(output)
    done = run_cli("compact", "--output_base_path", str(output), LD_PRELOAD=fsync, FSYNC_ERROR=str(error))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(parts(output)) == 1
    assert newest_rows(output) == before


@pytest.mark.parametrize("files", [False, True])
def test_a_rewrite_that_fails_names_the_place_and_leaves_no_piece(output, fsync, files):
    before = parts(output)
    environment = {"LD_PRELOAD": fsync, "FSYNC_ERROR": str(errno.EIO), **({"FSYNC_FILES": "1"} if files else {})}
    done = run_cli("compact", "--output_base_path", str(output), **environment)
    place = f"{output}/index/model=sdxl" + (r"/part-\S+\.parquet" if files else "")
    assert re.fullmatch(f"proxyqueue: {place}: can't be written: Input/output error\n", done.stderr)
    assert done.returncode == 2
    assert parts(output) == before
