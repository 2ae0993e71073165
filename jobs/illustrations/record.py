"""What each illustration was made from, as hashes: a test compares them with the files of today.
Knows files; nothing of how an illustration is made."""

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github"
RECORD = FOLDER / "illustrations.json"

Made = dict[str, dict[str, str]]
"""By illustration: the hash of each source, and of the illustration itself as `result`."""


def read() -> Made:
    """The record of the repository; empty if there is none."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def write(name: str, sources: Iterable[str]) -> None:
    """Record that the file of this name has just been made from these sources (files or folders of the repository)."""
    made = read() | {name: hashes(sources) | {"result": hash_of(FOLDER / name)}}
    RECORD.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def hashes(sources: Iterable[str]) -> dict[str, str]:
    """The present hash of each source."""
    return {source: hash_of(ROOT / source) for source in sources}


def hash_of(path: Path) -> str:
    """16 hex digits of a file's SHA-256, or of all files of a folder. Comments and docstrings of code don't count."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(_without_prose(file) if file.suffix == ".py" else file.read_bytes())
    return digest.hexdigest()[:16]


def _without_prose(file: Path) -> bytes:
    """The code of a module with neither comments nor strings that stand alone, in one form."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            code = [line for line in node.body if not _is_string(line)]
            node.body = code or [ast.Pass()]
    return ast.unparse(tree).encode()


def _is_string(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
