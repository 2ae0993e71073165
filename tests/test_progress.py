"""Progress: what a line says, when lines come, the bar on a real terminal."""

import os
import pty
import re
import sys
import time

from ray_app import messages, progress
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
    seen = in_a_terminal(code)
    assert "━" in seen
    assert "100 of 200 images" in seen


def in_a_terminal(code: str, **environment: str) -> str:
    """What Python code writes to a terminal that is both its standard output and its stderr."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ.update({"COLUMNS": "140", "TERM": "xterm", **environment})
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    try:
        while chunk := os.read(terminal, 4096):
            seen += chunk
    except OSError:  # the child is gone
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return seen.decode()


BAR = """
import time
from ray_app.progress import PoolState, Progress
shown = Progress(200, 50)
shown.show(PoolState(2, 2))
time.sleep(0.3)
shown.close()
"""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def test_no_color_leaves_the_bar_without_colours():
    plain = in_a_terminal(BAR, NO_COLOR="1")
    assert "50 of 200 images" in plain
    assert not [code for code in COLOUR.findall(plain) if re.search(r"3\d|9\d", code)]
    assert [code for code in COLOUR.findall(in_a_terminal(BAR)) if re.search(r"3\d|9\d", code)]


def test_a_dumb_terminal_gets_lines_without_control_codes():
    shown = in_a_terminal(BAR, TERM="dumb")
    assert "50 of 200 images" in shown
    assert "\x1b" not in shown


def test_no_color_leaves_help_without_control_codes():
    code = "from ray_app.cli import main; main(['compact', '--help'])"
    assert "\x1b" not in in_a_terminal(code, NO_COLOR="1")
    assert "\x1b" in in_a_terminal(code)


WORK = """
import time
from ray_app import progress
progress.SHORT_SECONDS, progress.BAR_SECONDS = 0.0, 0.02
with progress.working("querying the index") as end:
    time.sleep(0.5)
    end()
    print("the answer", flush=True)
    time.sleep(0.2)
"""


def test_what_cannot_be_counted_shows_its_time_until_the_answer():
    before, after = in_a_terminal(WORK).split("the answer")
    assert "querying the index, 0:00" in before
    assert "querying" not in after


def test_work_says_a_line_every_ten_seconds_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    with progress.working("compacting the index"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"compacting the index, 0:\d\d", line) for line in lines)


def test_bytes_and_images_show_lines_that_are_due(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    checked, read = progress.Checked(10), progress.Bytes("of the model read")
    for now[0] in (1.0, 10.0, 11.0, 20.0):
        checked.add(2)
        read.show(int(now[0] * 1e6), 20_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "4 of 10 images checked, 0 images/s, 0:15 left",
        "10.0 of 20.0 MB of the model read, 1.0 MB/s, 0:10 left",
        "8 of 10 images checked, 0 images/s, 0:05 left",
        "20.0 of 20.0 MB of the model read, 1.0 MB/s, 0:00 left",
    ]


def test_quiet_shows_no_progress(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.01)
    with messages.reporting(quiet=True), progress.working("removing"):
        Progress(10, 0).show(PoolState(up=1, requested=1))
        progress.Checked(10).add(1)
        progress.Bytes("read").show(1, 2)
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
