"""Fresh processes start together, a failure in one is a message, a death is no hang, and none is left behind."""

import os
import signal
import time

import pytest

from jobs.benchmarks.processes import fresh_processes, wait_for_the_others
from ray_app.errors import Refused
from tests.support.processes import children, wait_for

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def none_is_left():
    yield
    wait_for("helper processes end", lambda: not children(os.getpid(), "multiprocessing.spawn"), 10)


def began_at(seconds_to_prepare: float) -> tuple[int, float]:
    time.sleep(seconds_to_prepare)
    wait_for_the_others()
    return os.getpid(), time.monotonic()


def fail_or_wait(fails: bool) -> None:
    if fails:
        raise ValueError("the cause\n" + 100 * "a frame\n" + "no such thing")
    wait_for_the_others()


def die_or_wait(dies: bool) -> None:
    if dies:
        signal.raise_signal(signal.SIGKILL)
    wait_for_the_others()


def test_they_begin_at_the_same_instant_each_in_its_own_process():
    with fresh_processes(3) as processes:
        for _ in range(2):
            called = time.monotonic()
            results = processes.call_in_each(began_at, [(0.0,), (0.5,), (0.0,)])
            assert len({pid for pid, _ in results}) == 3
            moments = [moment for _, moment in results]
            assert min(moments) >= called + 0.5
            assert max(moments) - min(moments) < 0.4


def test_a_failure_in_one_is_told_and_the_others_do_not_wait_for_it():
    with (
        pytest.raises(Refused, match=r"^fail_or_wait: ValueError: the cause a frame .{300,500} a frame no such thing$"),
        fresh_processes(3) as processes,
    ):
        processes.call_in_each(fail_or_wait, [(False,), (True,), (False,)])


def test_a_death_is_told_and_the_others_do_not_wait_for_it():
    with (
        pytest.raises(Refused, match=r"^die_or_wait: a process has died \(out of memory\?\)"),
        fresh_processes(2) as processes,
    ):
        processes.call_in_each(die_or_wait, [(False,), (True,)])


def test_none_is_started_where_none_is_wanted():
    with fresh_processes(0) as processes:
        assert processes.call_in_each(began_at, []) == []
        assert not children(os.getpid(), "multiprocessing.spawn")
