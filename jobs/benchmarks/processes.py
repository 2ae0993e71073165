"""Fresh processes for measuring: they can start at the same instant, and none outlives the command.
Knows signals and errors, which become messages of the command; nothing of what the processes do."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError
from typing import Any

from ray_app.errors import InputRefused, Refused
from ray_app.interrupts import uninterrupted

SPAWN = multiprocessing.get_context("spawn")
"""A forked process would inherit torch's threads in part."""
POLL_SECONDS = 0.5
KEPT = 250
"""Characters of a long error message's beginning, and of its end, that are shown."""


class FreshProcesses:
    """Processes that each run one call at a time; `fresh_processes` starts them."""

    def __init__(self, executor: ProcessPoolExecutor, count: int):
        self._executor, self.count = executor, count

    def call_in_each(self, call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """One call per process, and their results in any order.

        With more than one process the call must call `wait_for_the_others` once: a process that did not wait could run
        two of them.

        Raises:
            Refused: a call has failed, in its own words, or its process has died.
        """
        assert len(arguments) == self.count
        with uninterrupted(), _no_ctrl_c_for_new_processes():
            pending = {self._executor.submit(_failing_together, call, *values) for values in arguments}
            processes = multiprocessing.active_children()
        results = []
        while pending:
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                try:
                    results.append(future.result())
                except BrokenBarrierError:
                    continue  # another process has failed, and its future says why
                except BrokenProcessPool:
                    raise _death(call) from None
            # the executor itself overlooks the death of a process that started while it was about to wait
            if pending and any(process.exitcode is not None for process in processes):
                raise _death(call)
        return results


def _death(call: Callable[..., Any]) -> InputRefused:
    return InputRefused(f"{call.__name__}: a process has died (out of memory?); use a smaller model or smaller numbers")


@contextlib.contextmanager
def fresh_processes(count: int) -> Iterator[FreshProcesses]:
    """New processes, all or none. They end with the block: immediately if it raises."""
    barrier = SPAWN.Barrier(max(1, count))
    executor = ProcessPoolExecutor(max(1, count), SPAWN, _begin, (barrier,))  # each starts with its first call
    try:
        yield FreshProcesses(executor, count)
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown()


@contextlib.contextmanager
def _no_ctrl_c_for_new_processes() -> Iterator[None]:
    """In a terminal Ctrl-C is sent to all processes. Only the command acts on it, and ends those that it started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_barrier: Barrier
"""In a fresh process: where it waits for the others."""


def wait_for_the_others() -> None:
    """Return at the instant at which all processes have called this.

    Raises:
        BrokenBarrierError: another process has failed and will not come.
    """
    _barrier.wait()


def _begin(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command
    command.join()
    os._exit(1)


def _failing_together(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns; if it fails, the other processes stop waiting for this one."""
    try:
        return call(*arguments)
    except (Refused, BrokenBarrierError):
        _barrier.abort()
        raise
    except Exception as error:  # one of Ray's or torch's may not be fit to be sent to another process
        _barrier.abort()
        raise InputRefused(f"{call.__name__}: {type(error).__name__}: {_shortened(str(error))}") from None


def _shortened(message: str) -> str:
    """On one line, with beginning and end: torch names the cause in the first of many lines, Ray in the last."""
    line = " ".join(message.split())
    return line if len(line) <= 2 * KEPT else f"{line[:KEPT]} … {line[-KEPT:]}"
