"""Which process a number means: a pid alone proves nothing, not even on one host.
Knows /proc; nothing of runs but the fields of their records."""

import os
import platform
from pathlib import Path
from typing import Any


def identity(pid: int) -> dict[str, Any] | None:
    """What tells a process from others with its number: the boot, the pid namespace, and when it began, in ticks.

    None where there is no such process, or no /proc to ask.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),  # of the numbers that this process sees
            "started": int(after_name[19]),
        }
    except OSError:
        return None


def is_running(record: dict[str, Any]) -> bool | None:
    """Whether a record's process is there; None if that can't be told from here: another host, container or boot."""
    theirs, here = record.get("process"), identity(os.getpid())
    if not isinstance(theirs, dict) or here is None or record.get("host") != platform.node():
        return None
    if any(theirs.get(name) != here[name] for name in ("boot", "namespace")):
        return None
    found = identity(record["pid"])
    if found is None and _exists(record["pid"]):  # hidden from this user
        return None
    return found == theirs


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
