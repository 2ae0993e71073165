"""A run's record, runs/{run_id}.json: recipe, versions, counts, heartbeat, outcome; and what other runs' records say.
Knows what a run records for people and for the next run; nothing of how images are generated."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ray_app import process
from ray_app.errors import OutputRefused, Refused, write_failure
from ray_app.machine import versions
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.output import Output, Writer

BEAT_SECONDS = 10.0
DEAD_SECONDS = 120.0
"""Seconds without a change after which a run's record counts as dead, by the clock of the record's filesystem."""
WATCH_SECONDS = 3 * BEAT_SECONDS
"""How long a younger record is watched before another run takes over its images: the record of a live run changes."""
SILENT = "silent_seconds"
"""Field of a record that was read: seconds since it was written. Not in the file."""
ORPHAN_SECONDS = 10.0
"""How long an unfinished file without a recorded run may still be in use after it was last written to."""
RUNNING, DIED = "running", "died"
COMPLETE, SOME_FAILED = "complete", "some failed"
OF_PRINTING = ("quiet", "format")
"""Flags that change nothing but what is printed."""


def new_id() -> str:
    """A run's id: the time, so that listings are in order, and random digits, so that two drivers never share one."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


class Record:
    """The record of this run, updated at every heartbeat and at the end.

    Args:
        writer: where; its run id names the file.
        facts: what is known at the start: model_type, recipe, options, work (see `claimed_images`).
    """

    def __init__(self, writer: Writer, **facts: Any):
        self.writer = writer
        self._next_beat = 0.0
        self._record = {
            "run_id": writer.run_id,
            "state": RUNNING,
            "started_at": _now(),
            "heartbeat_at": _now(),
            "ended_at": None,
            "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
            "host": platform.node(),
            "pid": os.getpid(),
            "process": process.identity(os.getpid()),
            "versions": versions(),
            **facts,
        }
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def begin(self) -> None:
        """Write the record, and start the heartbeat's thread: watching another run or starting Ray can take minutes.

        Raises:
            Refused: the record can't be written.
        """
        self.beat()
        threading.Thread(target=self._keep_beating, daemon=True, name="proxyqueue heartbeat").start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS / 2):
            with contextlib.suppress(Refused):  # the main thread's next heartbeat raises it
                self.beat()

    def beat(self, **changes: Any) -> None:
        """Write that the run is alive, if the last heartbeat was long enough ago.

        Raises:
            Refused: the record can't be written.
        """
        with self._lock:
            if time.monotonic() < self._next_beat or self._ended.is_set():
                return
            self._next_beat = time.monotonic() + BEAT_SECONDS
            try:
                self._write(heartbeat_at=_now(), **changes)
            except OSError as error:
                raise write_failure(error) from error

    def end(self, state: str, **changes: Any) -> None:
        """Write how the run ended."""
        with self._lock:
            self._ended.set()
            self._write(state=state, ended_at=_now(), **changes)

    def drop(self) -> None:
        """Remove the record: the run did not begin."""
        self._ended.set()
        self.writer.output.remove(layout.run_file(self.writer.run_id))

    def _write(self, **changes: Any) -> None:
        self._record |= changes
        _write_record(self.writer, self._record)


@contextlib.contextmanager
def end_recorded(counts: Mapping[str, int], end: Callable[[dict[str, Any]], object]) -> Iterator[None]:
    """Whatever happens in the block, call `end` with how it ended, as a record has it: `state`, and `error` if any.

    What the block raises is raised, even if `end` can't write.

    Args:
        counts: how many of the run's rows "failed".
    """
    outcome: dict[str, Any] = {"state": "failed"}
    try:
        yield
        outcome = {"state": SOME_FAILED if counts["failed"] else COMPLETE}
    except KeyboardInterrupt:
        outcome = {"state": "interrupted"}
        raise
    except Exception as error:
        outcome = {"state": "failed", "error": str(error)}
        raise
    finally:
        try:
            end(outcome)
        except OSError:
            if has_ended_well(outcome["state"]):
                raise


def has_ended_well(state: str) -> bool:
    """Whether a run did all that was requested, though some of it may have failed."""
    return state in (COMPLETE, SOME_FAILED)


def recorded_flags(options: Any) -> dict[str, Any]:
    """The flags of a command (a dataclass) that say what was done, not how it was shown."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in OF_PRINTING}


def claimed_images(model_type: str, query_ids: Iterable[int], captures: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """What a run generates, short enough for its record: query ids as [first, last] ranges of consecutive ones."""
    ranges: list[list[int]] = []
    for query_id in sorted(set(query_ids)):
        if ranges and ranges[-1][1] == query_id - 1:
            ranges[-1][1] = query_id
        else:
            ranges.append([query_id, query_id])
    return {"model_type": model_type, "query_ids": ranges, "captures": sorted(map(list, captures))}


def check_no_overlapping_run(writer: Writer, claimed: dict[str, Any]) -> None:
    """Raise Refused if an older run that is still active generates some of the same images.

    Call it after the run's own record is written: of two runs that begin at the same time, both then see each other's
    record, and the older one continues.

    Args:
        claimed: what this run generates, from `claimed_images`.
    """
    output = writer.output
    for record in read_all(output):
        is_older = str(record.get("run_id")) < writer.run_id
        claimed_by_other = record.get("work")
        if not is_older or not claimed_by_other or not is_alive(record):
            continue
        shared_query = _first_shared_query(claimed, claimed_by_other)
        if shared_query is None:
            continue
        # a process that can't be seen from this host may still be running: its record tells
        if process.is_running(record) or _changes(writer, record):
            raise OutputRefused(
                f"{output.display_path(layout.run_file(record['run_id']))}: run still active (process {record['pid']}"
                f" on {record['host']}), and it generates query {shared_query} too; wait for it, take other --idx or"
                " --query_ids, or pass --force"
            )


def _changes(writer: Writer, record: dict[str, Any]) -> bool:
    """Watch the record of a run whose process can't be seen from this host; whether the run is active.

    One whose record does not change within WATCH_SECONDS is marked as died.
    """
    output, name = writer.output, layout.run_file(record["run_id"])
    LOG.warning(
        f"{output.display_path(name)}: checking for {WATCH_SECONDS:g} s whether this run is still active"
        f" (process {record['pid']} on {record['host']})"
    )
    content, deadline = output.read(name), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        try:
            new_content = output.read(name)
        except FileNotFoundError:
            return False
        if new_content != content:
            return json.loads(new_content).get("state") == RUNNING
    _write_record(writer, {**record, "state": DIED})
    return False


def mark_dead_runs(writer: Writer) -> list[str]:
    """Mark runs that ended without recording it as died, and remove their unfinished files; their ids."""
    output = writer.output
    records = {str(record.get("run_id")): record for record in read_all(output)}
    dead = [run_id for run_id, record in records.items() if record.get("state") == RUNNING and not is_alive(record)]
    for run_id in dead:
        _write_record(writer, {**records[run_id], "state": DIED})
    alive = {run_id for run_id, record in records.items() if is_alive(record)} | {writer.run_id}
    for run_id in output.folders(layout.STAGING):
        # staging without a record may belong to a run that has just begun, or to a compaction
        is_dead = run_id in records or output.staging_age(run_id) > ORPHAN_SECONDS
        if run_id not in alive and is_dead:
            output.remove_staging(run_id)
    return dead


def read_all(output: Output) -> list[dict[str, Any]]:
    """Every run's record, oldest first; files that are not records are skipped."""
    records, now = [], None
    for entry in sorted(output.entries(layout.RUNS)):
        if not entry.is_file or not layout.is_run_file(f"{layout.RUNS}/{entry.name}"):
            continue
        try:
            record = json.loads(output.read(f"{layout.RUNS}/{entry.name}"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and "run_id" in record:
            if record.get("state") == RUNNING:
                now = now or output.now()
                record[SILENT] = now - entry.mtime_ns / 1e9
            records.append(record)
    return records


def active_runs(output: Output) -> list[dict[str, Any]]:
    """The records of the runs that are active."""
    return [record for record in read_all(output) if is_alive(record)]


def is_alive(record: dict[str, Any]) -> bool:
    """Whether a run is active, from its record that was just read: its process exists, or else its record changes."""
    if record.get("state") != RUNNING:
        return False
    is_running = process.is_running(record)
    if is_running is None:
        return record.get(SILENT, math.inf) < DEAD_SECONDS
    return is_running


def _first_shared_query(claimed: dict[str, Any], claimed_by_other: dict[str, Any]) -> int | None:
    """A query of which two runs both generate images of the same model and capture, or None."""
    if claimed["model_type"] != claimed_by_other["model_type"]:
        return None
    if not any(capture in claimed_by_other["captures"] for capture in claimed["captures"]):
        return None
    for first, last in claimed["query_ids"]:
        for other_first, other_last in claimed_by_other["query_ids"]:
            if first <= other_last and other_first <= last:
                return max(first, other_first)
    return None


def _write_record(writer: Writer, record: dict[str, Any]) -> None:
    record = {name: value for name, value in record.items() if name != SILENT}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    writer.write(layout.run_file(str(record["run_id"])), text.encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
