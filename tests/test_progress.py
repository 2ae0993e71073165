"""Progress: what a line says, when lines come, the bar on a real terminal."""

import os
import pty
import sys

from ray_app import progress
from ray_app.progress import PoolState, Progress
from tests.conftest import ROOT


def test_a_line_tells_done_rate_time_left_failures_and_actors(monkeypatch):
    clock = iter([0.0, 10.0, 30.0, 30.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    shown = Progress(total=10_000, done=2_000)
    pool = PoolState(up=3, requested=3)
    assert "? images/s, ? left" in shown.describe(pool)
    shown.add(ok=100, failed=0)
    shown.add(ok=290, failed=10)
    assert shown.describe(pool) == "2,390 of 10,000 images, 15.0 images/s, 8:26 left, 10 failed, 3 actors up"


def test_the_rate_is_that_of_the_last_minute(monkeypatch):
    """A run that becomes slower, as one does whose GPUs are taken away, has more time left than its mean says."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(total=2_000, done=0)
    for now[0], images in [(10.0, 0), (20.0, 1_000), *((20.0 + 10 * n, 10) for n in range(1, 11))]:
        shown.add(ok=images, failed=0)
    described = shown.describe(PoolState(up=1, requested=1))
    assert described == "1,100 of 2,000 images, 1.0 images/s, 15:00 left, 0 failed, 1 actors up"


def test_lines_come_every_ten_seconds_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(total=10, done=0)
    for now[0] in (1.0, 9.9, 10.0, 10.5, 19.0, 20.0):
        if shown.is_due():
            shown.show(PoolState(up=1, requested=1))
    shown.close()
    assert capsys.readouterr().err.count(" images, ") == 2


def test_a_terminal_gets_a_bar():
    code = (
        "import time; from ray_app.progress import PoolState, Progress\n"
        "shown = Progress(200, 50); shown.add(50, 0)\n"
        "shown.show(PoolState(2, 2)); time.sleep(0.3); shown.close()"
    )
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ.update(COLUMNS="140", TERM="xterm")
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    try:
        while chunk := os.read(terminal, 4096):
            seen += chunk
    except OSError:  # the child is gone
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "━" in seen.decode()
    assert "100 of 200 images" in seen.decode()
