"""The retry policy: for which errors a process waits, how long in total, and when it waits again."""

import errno

import pytest

from ray_app.output import retry
from ray_app.output.retry import RetryPolicy

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, in seconds; none is really made."""
    made: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def test_an_error_that_can_pass_is_waited_for_15_seconds_and_said_once(pauses, capsys):
    waiting = RetryPolicy()
    assert [waiting.wait(FULL, "OUTPUT/a.jpg") for _ in range(7)] == [True] * 6 + [False]
    assert pauses == [0.2, 0.5, 1.0, 2.0, 4.0, 7.0]
    assert capsys.readouterr().err == ("proxyqueue: OUTPUT/a.jpg: No space left on device; retrying for 15 seconds\n")


def test_after_a_write_that_went_well_the_next_trouble_gets_all_pauses(pauses):
    waiting = RetryPolicy()
    for _ in range(2):
        assert [waiting.wait(FULL, "a") for _ in range(6)] == [True] * 6
        waiting.restore()
    assert len(pauses) == 12


def test_trouble_that_outlasts_all_pauses_is_never_waited_for_again(pauses):
    waiting = RetryPolicy()
    for _ in range(7):
        waiting.wait(FULL, "a")
    waiting.restore()
    assert not waiting.wait(FULL, "a")
    assert len(pauses) == 6


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG])
def test_an_error_that_only_a_person_can_mend_is_not_waited_for(pauses, capsys, number):
    assert not RetryPolicy().wait(OSError(number, "why"), "a")
    assert (pauses, capsys.readouterr().err) == ([], "")
