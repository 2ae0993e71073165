"""Packages import from lower layers only, `actors` imports nothing of `ray_app`, and help imports no torch.

The layers are those of `ray_app`'s docstring; CONTRIBUTING.md shows the same lines.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_app
from ray_app import cli
from tests.conftest import ROOT

LINES = [line for line in str(ray_app.__doc__).splitlines() if re.match(r"\d  ", line)]
ACTORS, COMMON, COMMANDS, JOBS = 0, 1, 7, 8
RESULTS = {"ray_app": COMMON, "actors": ACTORS, "jobs": JOBS}


def layers() -> dict[str, int]:
    """The layer of each package of `ray_app`, and of the modules of the two layers that are no packages."""
    found = {}
    for line in LINES:
        number, names = re.split(r" {2,}", line)[:2]
        for name in names.removesuffix(", …").split(", "):
            found[name] = int(number)
    return found


def layer_of(module: str) -> tuple[str, int]:
    """A module's package, or its own name where it is in none, and its layer.

    Args:
        module: its path of names, `ray_app.export.ipcir`.
    """
    top, *rest = module.split(".")
    if top != "ray_app" or not rest:
        return top, RESULTS[top]
    if rest[0] == "__main__":
        return "__main__", COMMANDS
    return rest[0], layers().get(rest[0], COMMON)


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of this project that a module imports, inside of functions too."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in RESULTS)


def file_of(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module, or of the module that a name is imported from."""
    parts = name.split(".")
    while parts:
        path = root.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        parts.pop()
    return None


def module_of(file: Path, root: Path = ROOT) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def faults(sources: dict[str, str]) -> list[str]:
    """Every import that runs upwards or sideways, as a sentence.

    Args:
        sources: the texts of files by their paths in the project.
    """
    told = []
    for path, text in sources.items():
        package, layer = layer_of(module_of(ROOT / path))
        for name in imports(ast.parse(text)):
            target = file_of(name)
            assert target, f"{path} imports {name}"
            to_package, to_layer = layer_of(module_of(target))
            own = package == to_package or (layer == to_layer and layer in (ACTORS, COMMON, COMMANDS, JOBS))
            if target == ROOT / path or own or to_layer < layer:
                continue
            told.append(
                f"{path} imports {target.relative_to(ROOT)}: {package} (layer {layer}) may not import"
                f" {to_package} (layer {to_layer})"
            )
    return told


def sources() -> dict[str, str]:
    files = [file for top in RESULTS for file in sorted((ROOT / top).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


def test_packages_import_from_lower_layers_only():
    assert faults(sources()) == []


def test_every_package_has_a_layer():
    packages = {file.parent.name for file in (ROOT / "ray_app").glob("*/__init__.py")}
    assert packages <= layers().keys()
    assert {"cli", "demo", "errors"} <= layers().keys()


@pytest.mark.parametrize(
    ("path", "line", "fault"),
    [
        (
            "ray_app/export/ipcir.py",
            "from ray_app.cli import main",
            "ray_app/export/ipcir.py imports ray_app/cli.py: export (layer 5) may not import cli (layer 7)",
        ),
        (
            "ray_app/query/query.py",
            "def f():\n    from ray_app.export import ipcir",
            "ray_app/query/query.py imports ray_app/export/ipcir.py: query (layer 5) may not import export (layer 5)",
        ),
        (
            "actors/recipe.py",
            "import ray_app.errors",
            "actors/recipe.py imports ray_app/errors.py: actors (layer 0) may not import errors (layer 1)",
        ),
        (
            "ray_app/demo.py",
            "from jobs import generate",
            "ray_app/demo.py imports jobs/generate.py: demo (layer 7) may not import jobs (layer 8)",
        ),
    ],
)
def test_an_import_that_runs_upwards_is_told(path, line, fault):
    assert faults({path: line}) == [fault]


def test_modules_import_each_other_in_no_circle():
    edges = {
        module_of(ROOT / path): {module_of(file) for name in imports(ast.parse(text)) if (file := file_of(name))}
        for path, text in sources().items()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module not in done:
            for target in sorted(edges[module] - {module}):
                visit(target, (*above, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in cli.COMMANDS)], ids=" ".join)
def test_help_imports_neither_torch_nor_ray(arguments):
    code = (
        "import sys; from ray_app.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'diffusers', 'pyarrow'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_contributors_read_the_same_layers():
    shown = (ROOT / "CONTRIBUTING.md").read_text()
    assert [line for line in LINES if line not in shown] == []
