"""Processes that tests start: found by descent, by command line or by a mark in their environment, and ended by id."""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

MARK = "PROXYQUEUE_TESTS"
"""Variable of this session's processes, which children inherit; another session on this machine has another value."""


def comes_true(condition: Callable[[], object], seconds: float) -> bool:
    """Whether a condition comes true within the time. Looks often, but takes a third of a core at most for it."""
    deadline = time.monotonic() + seconds
    while (began := time.monotonic()) < deadline:
        if condition():
            return True
        time.sleep(max(0.02, 2 * (time.monotonic() - began)))
    return False


def wait_for(awaited: str, condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition comes true; fails with what was awaited where that takes longer than the time."""
    assert comes_true(condition, seconds), f"after {seconds:.0f} s still not: {awaited}"


def commands() -> dict[int, str]:
    """Every process's command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    return found


def below(*ancestors: int) -> set[int]:
    """All processes below others, themselves left out."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = set()
    for process in parents:
        above = parents[process]
        while above and above not in ancestors:
            above = parents.get(above, 0)
        if above:
            found.add(process)
    return found - {*ancestors}


def children(ancestor: int, marker: str) -> list[int]:
    """Processes below another whose command line has the marker."""
    lines = commands()
    return [process for process in below(ancestor) if marker in lines.get(process, "")]


def are_gone(processes: Iterable[int]) -> bool:
    """Whether none of these processes runs any more; one that only waits for its parent counts as gone."""
    return not any(os.path.exists(f"/proc/{process}/fd/0") for process in processes)


def kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all below it, as when a machine goes away."""
    tree = {process.pid, *below(process.pid)}  # before the first dies: nothing leads to an orphan
    for found in tree:
        kill(found)
    process.wait()


def kill_all_with(text: str) -> None:
    """SIGKILL to all processes with the text in command line or environment and to all below, until none is left."""

    def found() -> set[int]:
        holding = {pid for pid, line in commands().items() if text in line}
        holding |= {pid for pid, variables in environments() if any(text in variable for variable in variables)}
        return (holding | below(*holding)) - {os.getpid()}

    def kill_found() -> bool:
        left = found()
        for process in left:
            kill(process)
        return not left

    wait_for(f"processes with {text} are gone after SIGKILL", kill_found, 30)


def mark_descendants() -> None:
    """All that this process starts from now on can be found again, also what detaches itself from it."""
    os.environ[MARK] = secrets.token_hex(8)


def end_descendants(seconds: float) -> list[str]:
    """Wait this many seconds for the marked processes to end by themselves, then kill the rest.

    Returns:
        A line per process that was killed: the test that started it, its id and its command.
    """
    mark = f"{MARK}={os.environ[MARK]}"

    def left() -> dict[int, list[str]]:
        trackers = children(os.getpid(), "multiprocessing.resource_tracker")  # this process's own, which ends with it
        spared = {os.getpid(), *trackers}
        return {pid: variables for pid, variables in environments() if mark in variables and pid not in spared}

    comes_true(lambda: not left(), seconds)
    lines = []
    for pid, variables in left().items():
        lines.append(f"{_test_of(variables)}: process {pid}: {commands().get(pid, '').strip()[:200]}: {_doing(pid)}")
        kill(pid)
    return lines


def _doing(pid: int) -> str:
    """State, parent and age of a process, and what each of its threads waits for in the kernel."""
    folder, found = Path(f"/proc/{pid}"), []
    with contextlib.suppress(OSError):
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        age = float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
        found += [f"state {fields[0]}, parent {fields[1]}, {age:.0f} s old"]
        found += sorted({f"{(task / 'comm').read_text().strip()} in {(task / 'wchan').read_text()}"
                         for task in (folder / "task").iterdir()})  # fmt: skip
    return "; ".join(found)


def environments() -> Iterator[tuple[int, list[str]]]:
    """Every process's variables as NAME=VALUE, those of other users' processes left out."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "environ").read_bytes().decode(errors="replace").split("\0")


def _test_of(variables: list[str]) -> str:
    """The test in which a process was started: pytest names it in the environment."""
    named = (line.partition("=")[2] for line in variables if line.startswith("PYTEST_CURRENT_TEST="))
    return next(named, "before the first test")
