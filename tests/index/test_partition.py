"""Parts of other versions: of a later schema, with a column more, older ones, and an output that 0.1.0 wrote."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors import tiny
from ray_app.cli import main
from ray_app.index.partition import Partition
from ray_app.index.schema import SCHEMA, VERSION_KEY
from ray_app.output.open import open_output
from tests.conftest import ROOT, SAMPLE, read_tree
from tests.support.outputs import TINY_OF_0_1_0, check_all_images_exist, parts, write_images

COMMANDS = {
    "query": ("query", "SELECT count(*) AS n FROM images", "--format", "json"),
    "verify": ("verify",),
    "repair": ("verify", "--repair"),
    "compact": ("compact",),
    "clean": ("clean", "--model_type", "sdxl", "--steps", "4", "--dry_run"),
    "clean all": ("clean", "--all", "--yes"),
    "status": ("status",),
    "export": ("export", "--format", "imagefolder"),
    "generate": ("generate", "--json_file", str(SAMPLE), "--model_path", "tiny", "--num_prompts", "2",
                 "--max_inference_steps", "4", "--save_steps", "1", "4"),
}  # fmt: skip


@pytest.fixture
def images(tmp_path) -> Path:
    """Twelve images in two parts."""
    write_images(tmp_path / "out", "run-1", range(6))
    return tmp_path / "out"


def rewrite(part: Path, change) -> None:
    """Rewrite a part with a changed table."""
    pq.write_table(change(pq.read_table(part, partitioning=None)), part, compression="zstd", write_page_checksum=True)


def later(table: pa.Table) -> pa.Table:
    table = table.append_column("more", pa.array(["x"] * table.num_rows))
    return table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY: b"2"})


def content(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.parquet")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_of_a_later_schema_is_refused_and_stays_as_it_is(command, output, capsys):
    first = parts(output)[0]
    rewrite(first, later)
    before, images = content(output), read_tree(output)
    verb, *flags = COMMANDS[command]
    assert main([verb, "--output_base_path", str(output), *flags]) == 2
    said = capsys.readouterr().err
    told = (
        f"proxyqueue: {first}: version 2 of the index's schema, and this proxyqueue reads 1; take the proxyqueue that"
    )
    assert said.splitlines()[-1].startswith(told)
    assert content(output) == before
    assert read_tree(output) == images


def with_a_note(table: pa.Table) -> pa.Table:
    return table.append_column("note", pa.array([f"note {row}" for row in range(table.num_rows)]))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_part_with_a_column_more_is_read_by_every_command(command, output, capsys):
    rewrite(parts(output)[-1], with_a_note)
    before = content(output)
    verb, *flags = COMMANDS[command]
    assert main([verb, "--output_base_path", str(output), *flags]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    if command == "generate":
        assert "nothing to generate: all 24 requested images exist" in said.out
    if command not in ("compact", "clean all"):
        assert content(output).items() >= before.items()


def test_compact_keeps_a_column_more(images, capsys):
    last = parts(images)[-1]
    rewrite(last, with_a_note)
    notes = {row["path"]: row["note"] for row in pq.read_table(last, partitioning=None).to_pylist()}
    assert main(["compact", "--output_base_path", str(images)]) == 0
    (part,) = parts(images)
    rows = pq.read_table(part, partitioning=None).to_pylist()
    assert {row["path"]: row["note"] for row in rows if row["note"] is not None} == notes
    assert len(rows) > len(notes)
    assert (
        main(["query", "--output_base_path", str(images), "SELECT count(note) AS n FROM images", "--format", "csv"])
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(len(notes))
    check_all_images_exist(images)


def test_a_column_more_of_two_types_is_refused(images, capsys):
    for part, value in zip(parts(images), (1, "text"), strict=False):
        rewrite(part, lambda table, value=value: table.append_column("note", pa.array([value] * table.num_rows)))
    before = content(images)
    assert main(["compact", "--output_base_path", str(images)]) == 2
    assert ": column note is " in capsys.readouterr().err
    assert content(images) == before


def test_an_older_part_has_null_where_it_lacks_a_column(images):
    rewrite(parts(images)[0], lambda table: table.drop_columns(["sigma", "node_id"]))
    partition = Partition.open(open_output(str(images)), "sdxl")
    assert not partition.damaged
    table = partition.read(["sigma", "query_id"])
    assert (table.num_rows, table["sigma"].null_count > 0, table["query_id"].null_count) == (12, True, 0)
    assert partition.schema.equals(SCHEMA)
    assert main(["compact", "--output_base_path", str(images)]) == 0
    check_all_images_exist(images)


def resume_command(output):
    """The command that generated the output of 0.1.0, with a prompt more per query."""
    flags = ("--model_path", "tiny", "--max_inference_steps", "2", "--save_steps", "1", "2", "--limit", "2")
    place = ("--output_base_path", str(output), "--json_file", str(SAMPLE), "--num_workers", "1")
    return ["generate", *place, *flags, "--num_prompts", "2"]


@pytest.fixture
def output_of_0_1_0(tmp_path):
    """Two queries of the sample, a prompt each, steps 1 and 2 of 2, generated by the tiny model of that version."""
    return Path(shutil.copytree(ROOT / "tests/data/output_0.1.0", tmp_path / "out"))


@pytest.mark.usefixtures("ray_local")
def test_an_output_of_0_1_0_is_verified_resumed_queried_and_compacted(output_of_0_1_0, capsys, monkeypatch):
    """As an output of a model that is still the same: the tiny one is said to be that of 0.1.0."""
    output, before = output_of_0_1_0, read_tree(output_of_0_1_0)
    monkeypatch.setattr(tiny, "revision", lambda _: TINY_OF_0_1_0)
    assert main(["verify", "--output_base_path", str(output), "--deep"]) == 0
    assert main(resume_command(output)) == 0
    said = capsys.readouterr()
    warnings = [line for line in said.err.splitlines() if line.startswith("proxyqueue: ")]
    assert not [line for line in warnings if "this output has images of" not in line]  # of other versions than these
    assert "images           8 requested, 4 existing, 4 to generate" in said.out
    assert read_tree(output).items() > before.items()
    assert main(["compact", "--output_base_path", str(output)]) == 0
    assert main(["query", "--output_base_path", str(output), "SELECT count(*) FROM images", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "8"
    assert main(["verify", "--output_base_path", str(output)]) == 0


def test_other_tiny_models_than_those_of_0_1_0_do_not_resume_its_output(output_of_0_1_0, capsys, monkeypatch):
    before = read_tree(output_of_0_1_0)
    monkeypatch.setattr(tiny, "revision", lambda _: "builtin:another")
    assert main(resume_command(output_of_0_1_0)) == 2
    assert f"the model's revision: this output has {TINY_OF_0_1_0!r}" in capsys.readouterr().err
    assert read_tree(output_of_0_1_0) == before
