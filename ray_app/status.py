"""The verb `status`: what is there of what was asked, the runs, the rate of the last minutes and the time left.
Reads the index, the tree and the runs' records; changes nothing and needs no Ray."""

import dataclasses
import datetime
import itertools
import json
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ray_app import asked, circo, existing, index, layout, runs, text_table
from ray_app.ask_options import Status
from ray_app.asked import RequestedImages
from ray_app.errors import INTERRUPTED, OK, OutputRefused
from ray_app.progress import duration
from ray_app.schema import KEY
from ray_app.storage import Output, open_output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

RATE_SECONDS = 300
"""Images/s are those of the last five minutes, or since the first image of them."""
NUMBERS = ("step", "asked", "done", "failed", "missing", "bytes")
"""Columns of the table of steps."""
MOST_RUNS = 10
"""Runs that the text names, the newest; json names all."""

_COLUMNS = (*KEY, "status", "bytes", "path", "run_id")


@dataclasses.dataclass(frozen=True)
class Line:
    """One step's folder: images asked for, and what became of them. Null where nobody says what was asked."""

    model: str
    snapshot: str
    step: int
    asked: int | None
    done: int
    failed: int
    missing: int | None
    bytes: int


def status(options: Status) -> int:
    """Show it, once or until Ctrl-C; the exit code.

    Raises:
        Refused: no output there, annotations that can't be read.
    """
    output = open_output(options.output_base_path)
    slots = _slots(options)
    try:
        while True:
            _show(collect_status(output, options, slots), options)
            if not options.watch:
                return OK
            time.sleep(options.seconds)
    except KeyboardInterrupt:  # the usual end of --watch: nothing to say
        if options.watch:
            return INTERRUPTED
        raise


def collect_status(output: Output, options: Status, slots: pa.Table | None = None) -> dict[str, Any]:
    """All that `status` says, as JSON has it."""
    records = runs.read_all(output)
    alive = {record["run_id"] for record in records if runs.is_alive(record)}
    lines: list[Line] = []
    going_on: list[dict[str, Any]] = []
    for model_type in layout.model_types(options.model_type):
        mine = [record for record in records if record.get("model_type") == model_type]
        rows = _newest(output, model_type)
        if not mine and not rows.num_rows:
            continue
        there = np.asarray(pc.equal(rows["status"], "ok"))
        if not options.index_only:
            there = existing.mask_rows_with_files(output, model_type, rows)
        lines += _count_by_step(model_type, rows, there, _requested_images(options, slots, mine, rows))
        running = [record for record in mine if record["run_id"] in alive]
        if running:
            going_on.append(_measure_pace(model_type, rows, there, running))
    if not lines and not records:
        raise OutputRefused(
            f"--output_base_path {output.url}: holds no index and no run's record", flag="output_base_path"
        )
    return {
        "output": output.url,
        "images": [dataclasses.asdict(line) for line in lines],
        "runs": [_summarize_run(record, record["run_id"] in alive) for record in records],
        "going_on": going_on,
    }


def _slots(options: Status) -> pa.Table | None:
    if options.json_file is None:
        return None
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts)
    return circo.slots(annotations.queries(), options.img_per_prompt, 0, "image", "jpg")


def _newest(output: Output, model_type: str) -> pa.Table:
    rows = index.read_rows(output, model_type, _COLUMNS)
    return rows.take(pa.array(index.newest(rows)))


def _requested_images(
    options: Status, slots: pa.Table | None, records: list[dict[str, Any]], rows: pa.Table
) -> RequestedImages | None:
    """What was asked; None where neither annotations nor a record says it."""
    of_runs = asked.of_records(records)
    found = of_runs if slots is None else asked.of_slots(slots, of_runs.captures)
    if not found.slots:
        return None
    captures = found.captures | (set(_captures(rows)) if slots is not None else set())
    if options.snapshot or options.steps:
        snapshots = {options.snapshot} if options.snapshot else {snapshot for snapshot, _ in captures} or {"xt"}
        steps = set(options.steps) or {step for _, step in captures}
        captures = set(itertools.product(snapshots, steps))
    return dataclasses.replace(found, captures=captures)


def _count_by_step(model_type: str, rows: pa.Table, there: np.ndarray, wanted: RequestedImages | None) -> list[Line]:
    included = np.ones(rows.num_rows, bool) if wanted is None else wanted.includes(rows)
    captures = set(_captures(rows)) if wanted is None else wanted.captures
    failed = np.asarray(pc.equal(rows["status"], "failed"))
    sizes = np.asarray(rows["bytes"].fill_null(0))
    lines = []
    for snapshot, step in sorted(captures, key=lambda capture: (capture[0] != "xt", capture[1])):
        of_step = included & _is(rows, snapshot, step)
        is_done = of_step & there
        done, gave_up = int(is_done.sum()), int((of_step & failed).sum())
        total = missing = None
        if wanted is not None:
            total = wanted.slots
            missing = total - done - gave_up
        lines.append(Line(model_type, snapshot, step, total, done, gave_up, missing, int(sizes[is_done].sum())))
    return lines


def _measure_pace(model_type: str, rows: pa.Table, there: np.ndarray, running: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast the runs that are going on draw a model's images, and how long what they were asked for will take."""
    wanted = asked.of_records(running)
    ids = pa.array([record["run_id"] for record in running])
    by_them = np.asarray(pc.is_in(rows["run_id"], value_set=ids))
    now = time.time()
    ages = now - np.asarray(rows["created_at"].cast(pa.int64())) / 1e6
    recent = ages[by_them & (ages < RATE_SECONDS)]
    # the first rows came at the end of the time that they took: counted from them, they don't count
    span = recent.max(initial=0.0)
    drawn = int((recent < span).sum())
    rate = drawn / span if drawn else 0.0
    of_capture = np.logical_or.reduce(
        [_is(rows, *capture) for capture in wanted.captures] or [np.zeros(len(ages), bool)]
    )
    # what failed before is tried again; what failed in these runs is not
    settled = wanted.includes(rows) & of_capture & (there | (by_them & ~np.asarray(pc.equal(rows["status"], "ok"))))
    left = max(0, wanted.slots * len(wanted.captures) - int(settled.sum())) if wanted.slots else None
    return {
        "model": model_type,
        "run_ids": ids.to_pylist(),
        "images_per_second": round(rate, 2),
        "images_left": left,
        "seconds_left": round(left / rate) if rate and left is not None else None,
    }


def _summarize_run(record: dict[str, Any], alive: bool) -> dict[str, Any]:
    """What is said of a run. One that says it is running but isn't has died."""
    summary = record.get("summary") or {}
    counts = record.get("counts") or {}
    state = record.get("state")
    return {
        "run_id": record["run_id"],
        "state": runs.DIED if state == runs.RUNNING and not alive else state,
        "model": record.get("model_type"),
        "started_at": record.get("started_at"),
        "seconds": _seconds(record, alive),
        "images_written": summary.get("images_written", counts.get("ok")),
        "images_failed": summary.get("images_failed", counts.get("failed")),
        "host": record.get("host"),
        "pid": record.get("pid"),
        "error": record.get("error"),
    }


def _seconds(record: dict[str, Any], alive: bool) -> int | None:
    """From its start to its end, to now, or to its last heartbeat."""
    try:
        started = datetime.datetime.fromisoformat(record["started_at"])
        last = record.get("ended_at") or record["heartbeat_at"]
        end = datetime.datetime.now(datetime.UTC) if alive else datetime.datetime.fromisoformat(last)
        return max(0, round((end - started).total_seconds()))
    except (KeyError, TypeError, ValueError):
        return None


def _captures(rows: pa.Table) -> list[tuple[str, int]]:
    pairs = rows.group_by(["snapshot", "step"]).aggregate([]).to_pylist()
    return [(pair["snapshot"], pair["step"]) for pair in pairs]


def _is(rows: pa.Table, snapshot: str, step: int) -> np.ndarray:
    return np.asarray(pc.and_(pc.equal(rows["snapshot"], snapshot), pc.equal(rows["step"], step)))


def _show(report: dict[str, Any], options: Status) -> None:
    if options.format == "json":
        text = json.dumps(report, ensure_ascii=False, indent=None if options.watch else 1)
    else:
        text = _format_report(report)
        if options.watch:
            clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
            text = f"{clear}{datetime.datetime.now():%H:%M:%S}  {text}" + ("" if clear else "\n")
    print(text, flush=True)


def _format_report(report: dict[str, Any]) -> str:
    lines = [report["output"]]
    table = [["model", "snapshot", *NUMBERS]]
    for row in report["images"]:
        numbers = ["?" if row[name] is None else f"{row[name]:,}" for name in NUMBERS]
        table.append([row["model"], row["snapshot"], *numbers])
    lines += text_table.align(table, right=range(2, len(table[0])))
    if any(row["asked"] is None for row in report["images"]):
        lines.append("?: no run's record says what was asked; --json_file does")
    shown = report["runs"][-MOST_RUNS:]
    if len(shown) < len(report["runs"]):
        lines.append(f"and {len(report['runs']) - len(shown):,} runs before these (--format json names all)")
    lines += [_format_run(run) for run in shown]
    for pace in report["going_on"]:
        left = "" if pace["images_left"] is None else f", {pace['images_left']:,} images to go"
        eta = "?" if pace["seconds_left"] is None else duration(pace["seconds_left"])
        lines.append(f"{pace['model']}: going on, {pace['images_per_second']:.1f} images/s{left}, {eta} left")
    return "\n".join(lines)


def _format_run(run: dict[str, Any]) -> str:
    took = "?" if run["seconds"] is None else duration(run["seconds"])
    written = "" if run["images_written"] is None else f", {run['images_written']:,} images"
    failed = f", {run['images_failed']:,} failed" if run["images_failed"] else ""
    where = f" (process {run['pid']} on {run['host']})" if run["state"] == runs.RUNNING else ""
    why = f": {' '.join(str(run['error']).split())[:200]}" if run["error"] else ""
    return f"run {run['run_id']}  {run['model'] or '?':<5} {run['state']}{where}, {took}{written}{failed}{why}"
