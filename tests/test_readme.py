"""The README tells the truth: help texts, columns and queries are the program's own.

`python -m tests.test_readme` writes the generated parts anew.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ray_app.cli import VERBS
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.index.schema import COLUMNS
from tests.conftest import ROOT, SAMPLE, read_helps
from tests.support.synthetic import FAILS, SyntheticWorker

README = ROOT / "README.md"


def columns() -> str:
    lines = [f"| `{name}` | {column.type} | {column.meaning} |" for name, column in COLUMNS.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *lines, "| `model` | partition | sdxl or flux |"])


def generated(text: str, helps: dict[str, Any]) -> str:
    """The README with its generated parts made anew."""
    parts = {"columns": columns()}
    for verb in VERBS:
        lines = "\n".join(line.rstrip() for line in helps[verb].strip().splitlines())
        parts[f"help: {verb}"] = f"```text\n{lines}\n```"
    for name, part in parts.items():
        block = f"<!-- {name} -->\n{part}\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        assert count == 1, name
    return text


def test_generated_parts_are_current(helps):
    assert README.read_text() == generated(README.read_text(), helps), "python -m tests.test_readme writes them anew"


def test_commands_in_the_readme_parse():
    """Every proxyqueue command line shown is one that the program accepts."""
    from ray_app.arguments import parse

    commands = re.findall(r"`(proxyqueue \w+ [^`…]+)`", README.read_text())
    assert len(commands) >= 2
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    commands += re.findall(r"^(proxyqueue \w+ .*)$", "\n".join(blocks), flags=re.MULTILINE)
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        options = parse(f"proxyqueue {verb}", VERBS[verb][0], arguments)
        if command := getattr(options, "command", ()):
            parse(f"proxyqueue {command[0]}", VERBS[command[0]][0], list(command[1:]))


@pytest.fixture(scope="module")
def output(ray_local, tmp_path_factory) -> Path:
    """One below folders that look like partitions of columns that the index has."""
    place = tmp_path_factory.mktemp("readme") / "seed=5" / "step=9" / "model=turbo" / "out"
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
    """A file of the Finder's beside the parts."""
    hidden = output / "index/model=sdxl/._part-x.parquet"
    hidden.write_text("not Parquet")
    yield
    hidden.unlink()


def blocks(language: str, output: Path) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return [block.replace("OUTPUT", str(output)) for block in found]


@pytest.mark.usefixtures("macs_file")
def test_the_sql_runs_on_a_real_index(output):
    view, *queries = blocks("sql", output)
    duckdb.sql(view)
    costs, failures, shared = (duckdb.sql(sql).fetchall() for sql in queries)
    assert [row[:4] for row in costs] == [("sdxl", "xt", 1, 29), ("sdxl", "xt", 2, 29)]
    assert [row[1:4] for row in failures] == [(0, 1, "NonFiniteLatents"), (0, 2, "NonFiniteLatents")]
    assert [(prompt, sorted(query_ids)) for _, prompt, query_ids in shared] == [("A dog by the sea at sunset.", [0, 5])]


if __name__ == "__main__":
    README.write_text(generated(README.read_text(), read_helps()))
