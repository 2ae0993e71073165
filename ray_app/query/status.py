"""The command `status`: images done, failed and missing, the runs, the rate of the last minutes and the time left.
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

from ray_app import text_table
from ray_app.annotations import circo
from ray_app.errors import INTERRUPTED, OK, OutputRefused
from ray_app.index import existing, runs
from ray_app.index import requested as asked
from ray_app.index.requested import RequestedImages
from ray_app.index.rows import find_newest, is_of_capture, read_rows
from ray_app.index.schema import KEY
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import duration, working
from ray_app.query.options import Status

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute

RATE_SECONDS = 300
"""Images/s are measured over the last five minutes, or since the first image within them."""
NUMBERS = ("step", "asked", "done", "failed", "missing", "bytes")
"""Columns of the table of steps, by their names in the JSON; "asked" is "requested" in the text."""
MOST_RUNS = 10
"""How many runs the text names, the newest; json names all."""

CLEAR_SCREEN = "\x1b[H\x1b[2J"

_COLUMNS = (*KEY, "status", "bytes", "path", "run_id")


@dataclasses.dataclass(frozen=True)
class Line:
    """One step's folder: its images by outcome. `asked` and `missing` are None if the requested number is unknown."""

    model: str
    snapshot: str
    step: int
    asked: int | None
    done: int
    failed: int
    missing: int | None
    bytes: int


def status(options: Status) -> int:
    """Show the status, once or until Ctrl-C; the exit code.

    Raises:
        Refused: the output does not exist, annotations that can't be read.
    """
    output = open_output(options.output_base_path)
    slots = _slots(options)
    try:
        while True:
            with working("counting images"):
                report = collect_status(output, options, slots)
            _show(report, options)
            if not options.watch:
                return OK
            time.sleep(options.seconds)
    except KeyboardInterrupt:  # the usual end of --watch needs no message
        if options.watch:
            return INTERRUPTED
        raise


def collect_status(output: Output, options: Status, slots: pa.Table | None = None) -> dict[str, Any]:
    """Everything that `status` shows, in the form of its JSON."""
    records = runs.read_all(output)
    alive_ids = {record["run_id"] for record in records if runs.is_alive(record)}
    lines: list[Line] = []
    paces: list[dict[str, Any]] = []
    for model_type in layout.model_types(options.model_type):
        records_of_model = [record for record in records if record.get("model_type") == model_type]
        rows = _newest(output, model_type)
        if not records_of_model and not rows.num_rows:
            continue
        if options.index_only:
            is_done = np.asarray(pc.equal(rows["status"], "ok"))
        else:
            is_done = existing.mask_rows_with_files(output, model_type, rows)
        requested = _requested_images(options, slots, records_of_model, rows)
        lines += _count_by_step(model_type, rows, is_done, requested)
        active_records = [record for record in records_of_model if record["run_id"] in alive_ids]
        if active_records:
            paces.append(_measure_pace(model_type, rows, is_done, active_records))
    if not lines and not records:
        raise OutputRefused(
            f"--output_base_path {output.url}: holds no index and no run's record", flag="output_base_path"
        )
    return {
        "output": output.url,
        "images": [dataclasses.asdict(line) for line in lines],
        "runs": [_summarize_run(record, record["run_id"] in alive_ids) for record in records],
        "going_on": paces,
    }


def _slots(options: Status) -> pa.Table | None:
    if options.json_file is None:
        return None
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts)
    return circo.slots(annotations.queries(), options.img_per_prompt, 0, "image", "jpg")


def _newest(output: Output, model_type: str) -> pa.Table:
    rows = read_rows(output, model_type, _COLUMNS)
    return rows.take(pa.array(find_newest(rows)))


def _requested_images(
    options: Status, slots: pa.Table | None, records: list[dict[str, Any]], rows: pa.Table
) -> RequestedImages | None:
    """What was requested; None if neither annotations nor a record has it."""
    requested = asked.of_records(records)
    if slots is not None:
        # annotations name no captures: those of the runs and of the index
        captures = requested.captures | set(_captures(rows))
        requested = asked.of_slots(slots, captures)
    if not requested.slots:
        return None
    if not options.snapshot and not options.steps:
        return requested
    snapshots = {snapshot for snapshot, _ in requested.captures} or {"xt"}
    if options.snapshot:
        snapshots = {options.snapshot}
    steps = set(options.steps) or {step for _, step in requested.captures}
    return dataclasses.replace(requested, captures=set(itertools.product(snapshots, steps)))


def _count_by_step(
    model_type: str, rows: pa.Table, is_done: np.ndarray, requested: RequestedImages | None
) -> list[Line]:
    """One line per step; counts all rows if the requested images are unknown."""
    if requested is None:
        is_counted = np.ones(rows.num_rows, bool)
        captures = set(_captures(rows))
    else:
        is_counted = requested.includes(rows)
        captures = requested.captures
    is_failed = np.asarray(pc.equal(rows["status"], "failed"))
    bytes_of_row = np.asarray(rows["bytes"].fill_null(0))
    lines = []
    for snapshot, step in sorted(captures, key=lambda capture: (capture[0] != "xt", capture[1])):
        is_of_step = is_counted & is_of_capture(rows, snapshot, step)
        done = int((is_of_step & is_done).sum())
        failed = int((is_of_step & is_failed).sum())
        total = missing = None
        if requested is not None:
            total = requested.slots
            missing = total - done - failed
        total_bytes = int(bytes_of_row[is_of_step & is_done].sum())
        lines.append(Line(model_type, snapshot, step, total, done, failed, missing, total_bytes))
    return lines


def _measure_pace(
    model_type: str, rows: pa.Table, is_done: np.ndarray, active_records: list[dict[str, Any]]
) -> dict[str, Any]:
    """How fast the active runs generate a model's images, and how long the rest of what they requested will take."""
    run_ids = pa.array([record["run_id"] for record in active_records])
    is_of_active_run = np.asarray(pc.is_in(rows["run_id"], value_set=run_ids))
    ages = time.time() - np.asarray(rows["created_at"].cast(pa.int64())) / 1e6
    recent_ages = ages[is_of_active_run & (ages < RATE_SECONDS)]
    # The oldest recent rows start the clock. They are not counted: they were generated before it.
    seconds = recent_ages.max(initial=0.0)
    images = int((recent_ages < seconds).sum())
    rate = images / seconds if images else 0.0
    images_left = _count_images_left(rows, is_done, is_of_active_run, asked.of_records(active_records))
    return {
        "model": model_type,
        "run_ids": run_ids.to_pylist(),
        "images_per_second": round(rate, 2),
        "images_left": images_left,
        "seconds_left": round(images_left / rate) if rate and images_left is not None else None,
    }


def _count_images_left(
    rows: pa.Table, is_done: np.ndarray, is_of_active_run: np.ndarray, requested: RequestedImages
) -> int | None:
    """How many requested images the active runs have yet to generate; None if their records don't say."""
    if not requested.slots:
        return None
    is_of_any_capture = np.zeros(rows.num_rows, bool)
    for snapshot, step in requested.captures:
        is_of_any_capture |= is_of_capture(rows, snapshot, step)
    # images that failed in an earlier run are retried, those that failed in these runs are not
    is_failed = is_of_active_run & ~np.asarray(pc.equal(rows["status"], "ok"))
    is_settled = requested.includes(rows) & is_of_any_capture & (is_done | is_failed)
    return max(0, requested.slots * len(requested.captures) - int(is_settled.sum()))


def _summarize_run(record: dict[str, Any], alive: bool) -> dict[str, Any]:
    """What the report says about a run. A run that is recorded as running but is not alive has died."""
    summary = record.get("summary") or {}
    counts = record.get("counts") or {}
    state = record.get("state")
    return {
        "run_id": record["run_id"],
        "state": runs.DIED if state == runs.RUNNING and not alive else state,
        "model": record.get("model_type") or record.get("kind"),
        "started_at": record.get("started_at"),
        "seconds": _seconds(record, alive),
        "images_written": summary.get("images_written", counts.get("ok")),
        "images_failed": summary.get("images_failed", counts.get("failed")),
        "host": record.get("host"),
        "pid": record.get("pid"),
        "error": record.get("error"),
    }


def _seconds(record: dict[str, Any], alive: bool) -> int | None:
    """From a run's start to its end, to now if it is alive, or else to its last heartbeat."""
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


def _show(report: dict[str, Any], options: Status) -> None:
    if options.format == "json":
        text = json.dumps(report, ensure_ascii=False, indent=None if options.watch else 1)
    else:
        text = _format_report(report)
        if options.watch:
            text = f"{datetime.datetime.now():%H:%M:%S}  {text}"
            if sys.stdout.isatty():
                text = f"{CLEAR_SCREEN}{text}"
            else:
                text += "\n"  # an empty line between reports
    print(text, flush=True)


def _format_report(report: dict[str, Any]) -> str:
    lines = [report["output"]]
    table = [["model", "snapshot", *(name.replace("asked", "requested") for name in NUMBERS)]]
    for row in report["images"]:
        numbers = ["?" if row[name] is None else f"{row[name]:,}" for name in NUMBERS]
        table.append([row["model"], row["snapshot"], *numbers])
    lines += text_table.align(table, right=range(2, len(table[0])))
    if any(row["asked"] is None for row in report["images"]):
        lines.append("?: requested number unknown; pass --json_file")
    shown = report["runs"][-MOST_RUNS:]
    if len(shown) < len(report["runs"]):
        lines.append(f"and {len(report['runs']) - len(shown):,} runs before these (--format json names all)")
    lines += [_format_run(run) for run in shown]
    lines += [_format_pace(pace) for pace in report["going_on"]]
    return "\n".join(lines)


def _format_pace(pace: dict[str, Any]) -> str:
    images_left = "" if pace["images_left"] is None else f", {pace['images_left']:,} images to go"
    eta = "?" if pace["seconds_left"] is None else duration(pace["seconds_left"])
    return f"{pace['model']}: active, {pace['images_per_second']:.1f} images/s{images_left}, {eta} left"


def _format_run(run: dict[str, Any]) -> str:
    took = "?" if run["seconds"] is None else duration(run["seconds"])
    written = "" if run["images_written"] is None else f", {run['images_written']:,} images"
    failed = f", {run['images_failed']:,} failed" if run["images_failed"] else ""
    where = f" (process {run['pid']} on {run['host']})" if run["state"] == runs.RUNNING else ""
    why = f": {' '.join(str(run['error']).split())[:200]}" if run["error"] else ""
    return f"run {run['run_id']}  {run['model'] or '?':<5} {run['state']}{where}, {took}{written}{failed}{why}"
