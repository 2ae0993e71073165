"""A run's record, runs/{run_id}.json: recipe, versions, counts, outcome.
Knows what a run leaves behind for people and for the next run; nothing of how it is done."""

import datetime
import importlib.metadata
import json
import os
import platform
import secrets
import sys
from typing import Any

from ray_app import __version__, layout
from ray_app.storage import Storage

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pillow", "numpy", "pyarrow")


def new_id() -> str:
    """A run's id: the time, so that a listing is in order, and chance, so that two drivers never share one."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def versions() -> dict[str, str]:
    """Versions of what decides pixels and behaviour."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"proxyqueue": __version__, "python": platform.python_version(), **installed}


def begin(model_type: str, recipe: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that starts now. `asked` are the flags it was started with."""
    return {
        "state": "running",
        "started_at": _now(),
        "ended_at": None,
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
        "host": platform.node(),
        "pid": os.getpid(),
        "model_type": model_type,
        "recipe": recipe,
        "options": asked,
        "versions": versions(),
    }


def write(storage: Storage, record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write the record with these changes over the one that is there; returns it."""
    assert storage.run_id is not None
    record = {"run_id": storage.run_id, **record, **changes}
    if record["state"] != "running":
        record["ended_at"] = _now()
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    storage.write(layout.run_file(storage.run_id), text.encode())
    return record


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
