"""What the base installation leaves out: one line that says how to get it, and nothing else that needs it."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.test_versions import EXTRAS, NEEDED
from tests.support.outputs import write_images
from tests.support.planted import plant

HIDE = """
import sys
from ray_app.cli import main

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
sys.exit(main({arguments}))
"""
OF_OTHERS = {"huggingface_hub": "diffusers", "requests": "ray", "yaml": "ray", "tokenizers": "transformers"}
"""Modules that are imported and come with a dependency's own dependencies."""


def run_without(hidden: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = HIDE.format(hidden=hidden, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(
    ("hidden", "packages"),
    [({"matplotlib"}, "matplotlib"), ({"matplotlib", "skimage"}, "scikit-image and matplotlib")],
)
def test_convergence_says_what_it_needs(tmp_path, hidden, packages):
    write_images(tmp_path, "run-1", [0, 1])
    result = run_without(hidden, "convergence", "--output_base_path", str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"proxyqueue: convergence needs {packages}: pip install 'proxyqueue[plot]'\n"


def test_other_commands_do_without(tmp_path):
    write_images(tmp_path, "run-1", [0, 1])
    result = run_without({"matplotlib", "skimage"}, "verify", "--output_base_path", str(tmp_path))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_evaluate_leaves_out_plots(tmp_path):
    plant(tmp_path)
    flags = ["--output_base_path", str(tmp_path / "out"), "--json_file", str(tmp_path / "val.json")]
    result = run_without({"matplotlib", "skimage"}, "evaluate", *flags, "--methods", "proxy", "--bootstrap", "100")
    assert result.returncode == 0, result.stderr
    assert "no plots: matplotlib is not installed (pip install 'proxyqueue[plot]')" in result.stderr
    assert {path.name for path in (tmp_path / "out/evaluation").iterdir()} == {"evaluation.parquet", "index.html"}


@pytest.mark.slow
def test_a_node_without_scikit_image_is_told(tmp_path):
    """Found by the driver, which does not import it, and broken where the tasks do."""
    from tests.evaluation.test_convergence import write_output

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/skimage.py").write_text("raise ModuleNotFoundError(\"No module named 'skimage'\")\n")
    write_output(tmp_path / "out", range(2), [("xt", 2), ("xt", 4)])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])}
    command = [sys.executable, "-m", "ray_app", "convergence", "--output_base_path", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 2, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last == "proxyqueue: a node lacks scikit-image; on every node: pip install 'proxyqueue[plot]'"


def imported_by(folder: Path, pattern: str = "**/*.py") -> set[str]:
    """The top names of all modules that files import, inside of functions too."""
    names = set()
    for file in folder.glob(pattern):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"actors", "ray_app", "jobs"}


def test_what_is_imported_is_a_dependency():
    packages = importlib.metadata.packages_distributions()
    known = {name.lower().replace("_", "-") for name in NEEDED}
    of_plot = {needed.name for needed in EXTRAS["plot"]}
    installed = imported_by(ROOT / "ray_app") | imported_by(ROOT / "actors") | imported_by(ROOT / "jobs", "*.py")
    distributions = {module: packages[module][0].lower() for module in installed - OF_OTHERS.keys()}
    assert set(distributions.values()) - known == of_plot
    outside = [folder for folder in (ROOT / "ray_app").iterdir() if folder.is_dir() and folder.name != "evaluation"]
    assert not {"skimage", "matplotlib"} & set.union(*map(imported_by, outside))
