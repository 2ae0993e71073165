"""The README tells the truth: help texts, columns and queries are the program's own.

`python -m tests.test_readme` writes the generated parts anew.
"""

import re
import shlex
from typing import Any

import duckdb
import pytest

from ray_app import index
from ray_app.cli import VERBS
from ray_app.generate import generate
from ray_app.options import Generate
from tests.conftest import ROOT, SAMPLE, read_helps
from tests.synthetic import SyntheticWorker

README = ROOT / "README.md"


def columns() -> str:
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in index.COLUMNS.items()]
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
    from ray_app.cli import parse

    commands = re.findall(r"`(proxyqueue \w+ [^`…]+)`", README.read_text())
    assert len(commands) >= 2
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    commands += re.findall(r"^(proxyqueue \w+ .*)$", "\n".join(blocks), flags=re.MULTILINE)
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        options = parse(verb, VERBS[verb][0], arguments)
        if command := getattr(options, "command", ()):
            parse(command[0], VERBS[command[0]][0], list(command[1:]))


@pytest.mark.usefixtures("ray_local")
def test_queries_run_on_a_real_index(tmp_path):
    flags = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("1", "2"), "num_workers": "1"}
    generate(Generate(json_file=str(SAMPLE), output_base_path=str(tmp_path), **flags), SyntheticWorker)
    queries = re.findall(r"```sql\n(.*?)```", README.read_text(), flags=re.DOTALL)
    costs, failures, shared = (duckdb.sql(sql.replace("OUTPUT", str(tmp_path))).fetchall() for sql in queries)
    assert [row[:4] for row in costs] == [("sdxl", "xt", 1, 30), ("sdxl", "xt", 2, 30)]
    assert failures == []
    assert [(prompt, sorted(query_ids)) for _, prompt, query_ids in shared] == [("A dog by the sea at sunset.", [0, 5])]


if __name__ == "__main__":
    README.write_text(generated(README.read_text(), read_helps()))
