"""Every code block of README.md and docs/ is run here, or says above it why no test can.

Commands are parsed, and those that only read or rewrite an output are run on one. SQL and Python is run, JSON and YAML
is read.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from ray_app.annotations import circo
from ray_app.arguments import parse
from ray_app.cli import COMMANDS, main
from ray_app.features.metrics import METRICS as FEATURE_METRICS
from ray_app.generation.generate import generate
from ray_app.generation.metrics import METRICS
from ray_app.generation.options import Generate
from ray_app.work_queue.metrics import PREFIX
from tests.conftest import ROOT, SAMPLE
from tests.support.pages import MANUAL, PAGES, README, Block, blocks, name, shell_commands, shown_commands
from tests.support.synthetic import FAILS, SyntheticWorker

RUN = ("python", "sql", "json", "yaml")
SHOWN = "text"
"""Language of blocks that are no code: a tree, what a command prints."""
PROGRAMS = (["proxyqueue"], ["python", "-m"])
"""How commands begin that tests parse; those of `python -m` are in tests/jobs/test_commands.py."""

PROGRAM_FLAGS = {"--help", "--version"}
"""What is given to the program instead of a command."""

ON_AN_OUTPUT = ("query", "status", "verify", "export", "gallery", "compact", "convergence", "clean")
NOT_ON_THIS_ONE = ("s3://", "--watch", "--redraw", "--all", "npz")
"""A store, a command without an end, images that no model generated, a question at the terminal, vectors."""

INDEX_PAGE = ROOT / "docs" / "index-and-queries.md"
METRICS_PAGE = ROOT / "docs" / "metrics.md"
REFUSALS_PAGE = ROOT / "docs" / "input-validation.md"
EVERY_BLOCK = [block for page in MANUAL for block in blocks(page)]


def is_run(block: Block) -> bool:
    if block.language == "bash":
        return all(any(words[: len(start)] == start for start in PROGRAMS) for words in shell_commands(block))
    return block.language in RUN


@pytest.mark.parametrize("block", EVERY_BLOCK, ids=str)
def test_every_block_is_run_or_says_why_not(block):
    if block.language != SHOWN:
        assert is_run(block) != bool(block.not_run), "run by no test and without <!-- not run: why -->, or both"


def test_a_block_that_nothing_runs_is_found():
    shell = Block(README, 1, "bash", "proxyqueue demo && rm -r x", "")
    assert not is_run(shell)
    assert is_run(shell._replace(text="proxyqueue demo \\\n  --output_base_path x  # comment"))
    assert not is_run(shell._replace(language=""))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_ones_that_the_program_accepts(page):
    for _, verb, *arguments in shown_commands(page, "proxyqueue"):
        if verb in PROGRAM_FLAGS:
            continue
        options = parse(f"proxyqueue {verb}", COMMANDS[verb][0], arguments) if arguments else None
        assert verb in COMMANDS
        if command := getattr(options, "command", ()):
            parse(f"proxyqueue {command[0]}", COMMANDS[command[0]][0], list(command[1:]))


def test_commands_are_found():
    shown = {verb for page in MANUAL for _, verb, *_ in shown_commands(page, "proxyqueue")}
    assert shown - PROGRAM_FLAGS == set(COMMANDS)


@pytest.fixture(scope="module")
def folder(ray_local, tmp_path_factory) -> Path:
    """A folder with what the pages' commands are about: test.json, and out, the output of all its images."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(SAMPLE, folder / "test.json")
    options = Generate(
        json_file=str(folder / "test.json"), output_base_path=str(folder / "out"), model_path="tiny", num_workers="1"
    )
    assert generate(options, SyntheticWorker) == 0
    return folder


def on_an_output() -> list[str]:
    commands = [words for page in MANUAL for words in shown_commands(page, "proxyqueue")]
    lines = ["\t".join(words) for words in commands if words[1] in ON_AN_OUTPUT and "--output_base_path" in words]
    return sorted({line for line in lines if not any(word in line for word in NOT_ON_THIS_ONE)})


@pytest.mark.parametrize("line", on_an_output(), ids=lambda line: " ".join(line.split("\t")[1:])[:80])
def test_commands_on_an_output_run(line, folder, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert main(line.split("\t")[1:]) == 0, capsys.readouterr().err


@pytest.fixture
def datasets_offline(tmp_path, monkeypatch) -> None:
    """The datasets library keeps its files here."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


PYTHON_BLOCKS = [block for block in EVERY_BLOCK if block.language == "python"]


@pytest.mark.usefixtures("datasets_offline")
@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=str)
def test_python_runs(block, folder, tmp_path, monkeypatch):
    """After the page's own commands, in a folder with `out`."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for words in shown_commands(block.page, "proxyqueue"):
        if words[1] == "export":
            assert main(words[1:]) == 0
    assert main(["compact", "--output_base_path", "out"]) == 0
    names: dict[str, Any] = {}
    exec(block.text.replace("OUTPUT", str(tmp_path / "out")), names)
    if "slots" in names:
        assert (len(names["images"]), len(names["slots"])) == (30, 30)
        assert {"xt_step_1", "xt_step_4"} <= set(names["slots"].column_names)
    else:
        assert len(names["failed"]) == 0


@pytest.mark.parametrize("block", [block for block in EVERY_BLOCK if block.language == "json"], ids=str)
def test_annotations_that_are_shown_need_no_warning(block, tmp_path, capsys):
    shown = json.loads(block.text)
    file = tmp_path / "test.json"
    file.write_text(block.text)
    annotations = circo.load(str(file), "multi_gpt-3.5_opt", 2, strict=True)
    assert len(annotations.queries()) == len(shown)
    assert capsys.readouterr().err == ""


def test_refusals_are_those_that_are_shown(folder, tmp_path, monkeypatch, capsys):
    """All but that of a full disk, which tests/output/test_disk.py tests."""
    monkeypatch.chdir(tmp_path)
    Path("test.json").write_text(json.dumps([{"id": 17, "reference_img_id": "../x", "multi_gpt-3.5_opt": ["a dog"]}]))
    tiny = ["generate", "--model_path", "tiny", "--dry_run", "--json_file"]
    out = str(folder / "out")
    assert main([*tiny, "test.json"]) == 2
    assert main([*tiny, str(SAMPLE), "--save_steps", "64"]) == 2
    assert main([*tiny, str(SAMPLE), "--output_base_path", out, "--guidance_scale", "5"]) == 2
    printed = capsys.readouterr().err.replace(out, "/data/out").splitlines()
    (shown,) = blocks(REFUSALS_PAGE, "text")
    assert printed == [line for line in shown.text.splitlines() if "No space left" not in line]


@pytest.mark.parametrize("block", [block for block in EVERY_BLOCK if block.language == "yaml"], ids=str)
def test_yaml_is_yaml(block):
    assert isinstance(yaml.safe_load(block.text), dict)


def test_metrics_are_those_that_a_run_registers():
    named = set(re.findall(r"ray_proxyqueue_\w+", METRICS_PAGE.read_text()))
    prefix = f"ray_{PREFIX}"
    registered = set()
    for measured in (METRICS, FEATURE_METRICS):
        registered |= {prefix + f"{name}_total" for name, _ in (measured.ok, measured.failed, measured.idle)}
        registered |= {prefix + name for name in measured.seconds}
    assert named == registered


@pytest.mark.usefixtures("ray_local")
def test_the_readme_from_its_annotations_to_its_answer(tmp_path, monkeypatch, capsys):
    """README's JSON, its first `generate` on it, the tree's files, its query with the answer that it shows."""
    monkeypatch.chdir(tmp_path)
    (annotations,) = blocks(README, "json")
    Path("test.json").write_text(annotations.text)
    commands = shown_commands(README, "proxyqueue")
    flags = next(words[2:] for words in commands if words[1] == "generate" and "tiny" in words)
    options = parse("proxyqueue generate", Generate, [*flags, "--num_workers", "1"])
    assert generate(options, SyntheticWorker) == 0
    tree, answer = (block.text for block in blocks(README, "text"))
    shown = re.findall(r"combined[\w/]*/combined_\d+_0\.jpg", tree)
    assert len(shown) == 2
    assert all(Path("out/proxy_images_sdxl_step1", file).is_file() for file in shown)
    capsys.readouterr()
    (asked,) = (words[1:] for words in commands if words[1] == "query" and "--output_base_path" in words)
    assert main(asked) == 0
    assert capsys.readouterr().out.strip() == answer


@pytest.fixture(scope="module")
def output(ray_local, tmp_path_factory) -> Path:
    """An output with failed images, below folders that look like partitions of columns that the index has."""
    place = tmp_path_factory.mktemp("sql") / "seed=5" / "step=9" / "model=turbo" / "out"
    flags = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("1", "2"), "num_workers": "1"}
    queries = json.loads(SAMPLE.read_text())
    queries[-1]["multi_gpt-3.5_opt"][0] = FAILS
    sample = place.parent / "sample.json"
    sample.parent.mkdir(parents=True)
    sample.write_text(json.dumps(queries))
    assert generate(Generate(json_file=str(sample), output_base_path=str(place), **flags), SyntheticWorker) == 3
    return place


@pytest.fixture
def macs_file(output) -> Iterator[None]:
    """A file of the Finder's among the parts."""
    hidden = output / "index/model=sdxl/._part-x.parquet"
    hidden.write_text("not Parquet")
    yield
    hidden.unlink()


@pytest.mark.usefixtures("macs_file")
def test_the_sql_runs_on_a_real_index(output):
    assert [block.page for block in EVERY_BLOCK if block.language == "sql"] == [INDEX_PAGE] * 4
    view, *queries = (block.text.replace("OUTPUT", str(output)) for block in blocks(INDEX_PAGE, "sql"))
    duckdb.sql(view)
    costs, failures, shared = (duckdb.sql(sql).fetchall() for sql in queries)
    assert [row[:4] for row in costs] == [("sdxl", "xt", 1, 29), ("sdxl", "xt", 2, 29)]
    assert [row[1:4] for row in failures] == [(0, 1, "NonFiniteLatents"), (0, 2, "NonFiniteLatents")]
    assert [(prompt, sorted(query_ids)) for _, prompt, query_ids in shared] == [("A dog by the sea at sunset.", [0, 5])]
