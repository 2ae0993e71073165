"""The README tells the truth: help texts, columns and queries are the program's own.

`python -m tests.test_readme` writes the generated parts anew.
"""

import os
import re
import shlex
import subprocess
import sys

import duckdb
import pytest

from ray_app import index
from ray_app.cli import VERBS
from tests.conftest import ROOT, SAMPLE

README = ROOT / "README.md"


def help_of(verb: str) -> str:
    environment = {**os.environ, "COLUMNS": "110", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "ray_app", verb, "--help"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())


def columns() -> str:
    lines = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in index.COLUMNS.items()]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *lines, "| `model` | partition | sdxl or flux |"])


def generated(text: str) -> str:
    """The README with its generated parts made anew."""
    parts = {f"help: {verb}": f"```text\n{help_of(verb)}\n```" for verb in VERBS} | {"columns": columns()}
    for name, part in parts.items():
        block = f"<!-- {name} -->\n{part}\n<!-- end -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
        assert count == 1, name
    return text


def test_generated_parts_are_current():
    assert README.read_text() == generated(README.read_text()), "python -m tests.test_readme writes them anew"


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
    from ray_app.generate import generate
    from ray_app.options import Generate

    flags = {"model_path": "tiny", "max_inference_steps": 2, "save_steps": ("1", "2"), "num_workers": "1"}
    generate(Generate(json_file=str(SAMPLE), output_base_path=str(tmp_path), **flags))
    queries = re.findall(r"```sql\n(.*?)```", README.read_text(), flags=re.DOTALL)
    costs, failures, shared = (duckdb.sql(sql.replace("OUTPUT", str(tmp_path))).fetchall() for sql in queries)
    assert [row[:4] for row in costs] == [("sdxl", "xt", 1, 30), ("sdxl", "xt", 2, 30)]
    assert failures == []
    assert [(prompt, sorted(query_ids)) for _, prompt, query_ids in shared] == [("A dog by the sea at sunset.", [0, 5])]


if __name__ == "__main__":
    README.write_text(generated(README.read_text()))
