"""A run's record, runs/{run_id}.json: recipe, versions, counts, heartbeat, outcome; and what other runs' records say.
Knows what a run leaves behind for people and for the next run; nothing of how it is done."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from ray_app import __version__, layout, process
from ray_app.errors import OutputRefused, Refused, write_failure
from ray_app.messages import LOG
from ray_app.storage import Output, Writer

PACKAGES = ("ray", "torch", "diffusers", "transformers", "pillow", "numpy", "pyarrow")
BEAT_SECONDS = 10.0
DEAD_SECONDS = 120.0
"""A record that has not changed for so long is a dead run's, by the clock of the filesystem that it lies on."""
WATCH_SECONDS = 3 * BEAT_SECONDS
"""For which a younger record is watched before its work is begun again: a living run's changes."""
SILENT = "silent_seconds"
"""Of a record that was read: seconds since it was written. Not in the file."""
ORPHAN_SECONDS = 10.0
"""An unfinished file that belongs to no run is somebody's for so long after it was last written to."""
RUNNING, DIED = "running", "died"


def new_id() -> str:
    """A run's id: the time, so that a listing is in order, and chance, so that two drivers never share one."""
    now = datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def versions() -> dict[str, str]:
    """Versions of what decides pixels and behaviour."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"proxyqueue": __version__, "python": platform.python_version(), **installed}


class Record:
    """The record of this run; what it says of the run is true at every heartbeat and at the end.

    Args:
        writer: where; its run id names the file.
        facts: what is known at the start: model_type, recipe, options, work.
    """

    def __init__(self, writer: Writer, **facts: Any):
        self.writer = writer
        self._next = 0.0
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
        """Write it, and beat from a thread of its own: watching another run, starting Ray or a slow disk take minutes.

        Raises:
            Refused: the record can't be written.
        """
        self.beat()
        threading.Thread(target=self._keep_beating, daemon=True, name="proxyqueue heartbeat").start()

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS / 2):
            with contextlib.suppress(Refused):  # the run's own next beat tells
                self.beat()

    def beat(self, **changes: Any) -> None:
        """Write that the run lives, if the last time is long enough ago.

        Raises:
            Refused: the record can't be written.
        """
        with self._lock:
            if time.monotonic() < self._next or self._ended.is_set():
                return
            self._next = time.monotonic() + BEAT_SECONDS
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
        """Take the record back: the run did not begin."""
        self._ended.set()
        self.writer.output.remove(layout.run_file(self.writer.run_id))

    def _write(self, **changes: Any) -> None:
        self._record |= changes
        _write_record(self.writer, self._record)


def claimed_images(model_type: str, query_ids: Iterable[int], captures: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """What a run draws, short enough for its record: query ids as [first, last] ranges of consecutive ones."""
    ranges: list[list[int]] = []
    for query_id in sorted(set(query_ids)):
        if ranges and ranges[-1][1] == query_id - 1:
            ranges[-1][1] = query_id
        else:
            ranges.append([query_id, query_id])
    return {"model_type": model_type, "query_ids": ranges, "captures": sorted(map(list, captures))}


def check_no_overlapping_run(writer: Writer, mine: dict[str, Any]) -> None:
    """Raise Refused if an older run that is going on draws some of the same; call it after one's own record is written.

    Of two that begin at once, both see each other, and the older goes on.
    """
    output = writer.output
    for record in read_all(output):
        theirs = record.get("work")
        older = str(record.get("run_id")) < writer.run_id
        if not older or not theirs or not is_alive(record) or theirs["model_type"] != mine["model_type"]:
            continue
        shared = _overlap(mine["query_ids"], theirs["query_ids"])
        same_images = shared is not None and any(capture in theirs["captures"] for capture in mine["captures"])
        if same_images and (process.is_running(record) or _changes(writer, record)):
            raise OutputRefused(
                f"{output.display_path(layout.run_file(record['run_id']))}: this run is going on (process {record['pid']} on"
                f" {record['host']}) and draws query {shared} too; wait for it, take other --idx or --query_ids,"
                " or say --force"
            )


def _changes(writer: Writer, record: dict[str, Any]) -> bool:
    """Watch a run's record, whose process can't be seen from here, until it changes or has had its time."""
    output, name = writer.output, layout.run_file(record["run_id"])
    LOG.warning(
        f"{output.display_path(name)}: looking for {WATCH_SECONDS:g} s whether this run still goes on"
        f" (process {record['pid']} on {record['host']})"
    )
    before, until = output.read(name), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        try:
            now = output.read(name)
        except FileNotFoundError:
            return False
        if now != before:
            return json.loads(now).get("state") == RUNNING
    _write_record(writer, {**record, "state": DIED})
    return False


def mark_dead_runs(writer: Writer) -> list[str]:
    """Mark runs that ended without a word as died, remove what they left unfinished; their ids."""
    output = writer.output
    records = {str(record.get("run_id")): record for record in read_all(output)}
    dead = [run_id for run_id, record in records.items() if record.get("state") == RUNNING and not is_alive(record)]
    for run_id in dead:
        _write_record(writer, {**records[run_id], "state": DIED})
    living = {run_id for run_id, record in records.items() if is_alive(record)} | {writer.run_id}
    for run_id in output.folders(layout.STAGING):
        # one without a record may be of a run that begins just now, or of a compaction
        if run_id not in living and (run_id in records or output.staging_age(run_id) > ORPHAN_SECONDS):
            output.remove_staging(run_id)
    return dead


def read_all(output: Output) -> list[dict[str, Any]]:
    """Every run's record, oldest first; files that are no records are passed over."""
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


def going_on(output: Output) -> list[dict[str, Any]]:
    """Records of the runs that are going on."""
    return [record for record in read_all(output) if is_alive(record)]


def is_alive(record: dict[str, Any]) -> bool:
    """Whether a run, whose record was read just now, is going on: its process is there, or else its record changes."""
    if record.get("state") != RUNNING:
        return False
    running = process.is_running(record)
    return record.get(SILENT, math.inf) < DEAD_SECONDS if running is None else running


def _overlap(mine: list[list[int]], theirs: list[list[int]]) -> int | None:
    for first, last in mine:
        for low, high in theirs:
            if first <= high and low <= last:
                return max(first, low)
    return None


def _write_record(writer: Writer, record: dict[str, Any]) -> None:
    record = {name: value for name, value in record.items() if name != SILENT}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    writer.write(layout.run_file(str(record["run_id"])), text.encode())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
