"""Which process a number means: a pid alone proves nothing, not even on one host.
Knows /proc; nothing of runs but the fields of their records."""

import os
import platform
from pathlib import Path
from typing import Any


def identity(pid: int) -> dict[str, Any] | None:
    """What distinguishes a process from others with its number: the boot, the pid namespace, its start time in ticks.

    None where the process or /proc does not exist.
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
    """Whether a record's process exists; None if this process can't tell: another host, container or boot."""
    recorded, own = record.get("process"), identity(os.getpid())
    if not isinstance(recorded, dict) or own is None or record.get("host") != platform.node():
        return None
    if any(recorded.get(name) != own[name] for name in ("boot", "namespace")):
        return None
    current = identity(record["pid"])
    if current is None and _exists(record["pid"]):  # /proc hides other users' processes here
        return None
    return current == recorded


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
