"""The command `verify`: every check on every model of an output, the report, and the repair.
Knows the order of the checks and the report's form; the checks are in `checks` and `redraw`, the repair in `repair`."""

import collections
import datetime
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from ray_app import text_table
from ray_app.annotations import circo
from ray_app.errors import OK, PROBLEMS, OutputRefused
from ray_app.index import runs
from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.maintenance import checks
from ray_app.maintenance.checks import Model, Problem
from ray_app.maintenance.options import Verify
from ray_app.maintenance.redraw import redraw
from ray_app.maintenance.repair import repair, to_redraw
from ray_app.messages import LOG
from ray_app.output import layout
from ray_app.output.open import open_output
from ray_app.output.output import Output
from ray_app.progress import Checked, working

MOST_NAMED = 20
"""How many problems of a kind the text report names; json names all."""

REPAIRED = {
    "parts set aside": "parts quarantined",
    "files set aside": "files quarantined",
    "leftovers removed": "stale staging files removed",
}
"""How the text report names counts of `repair`, where JSON has an older name."""


def verify(options: Verify) -> int:
    """Check, repair and report; the exit code.

    Raises:
        Refused: the output does not exist, annotations that can't be read, or --repair while a run is active.
    """
    output = open_output(options.output_base_path)
    slots = _slots(options)
    models = _models(output, options)
    if options.repair:
        _check_repairable(output)
    progress = Checked(sum(int((np.asarray(model.rows["status"]) == "ok").sum()) for model in models))
    try:
        problems = list(_problems(output, models, slots, options, progress))
    finally:
        progress.close()
    order = list(checks.KINDS)
    problems.sort(key=lambda problem: order.index(problem.kind))
    report = _build_report(output, models, problems)
    if options.repair and problems:
        with working("repairing"), output.writing(runs.new_id()) as writer:
            report["repaired"] = repair(writer, models, problems)
        report["to_redraw"] = to_redraw(problems)
    text = json.dumps(report, ensure_ascii=False, indent=1) if options.format == "json" else _format_report(report)
    print(text, flush=True)
    return PROBLEMS if problems else OK


def _slots(options: Verify) -> pa.Table | None:
    """The slots of the annotations, if they are to be checked; their seeds and image formats are not checked."""
    if options.json_file is None:
        return None
    annotations = circo.load(options.json_file, options.prompt_field, options.num_prompts)
    for line in annotations.skipped[:MOST_NAMED]:
        LOG.warning(line)
    return circo.slots(annotations.queries(), options.img_per_prompt, 0, "image", "jpg")


def _models(output: Output, options: Verify) -> list[Model]:
    if not output.exists():
        raise OutputRefused(f"--output_base_path {output.url}: no such folder", flag="output_base_path")
    model_types = layout.model_types(options.model_type)
    existing_models = [
        name
        for name in model_types
        if output.list_names(layout.index_folder(name), "*.parquet") or output.step_folders(name)
    ]
    if not existing_models:
        raise OutputRefused(
            f"--output_base_path {output.url}: holds no index and no images of {' or '.join(model_types)}"
        )
    columns = checks.COLUMNS if options.json_file is None else (*checks.COLUMNS, "prompt")
    since = _running_since(output)
    return [_model(output, name, columns, since) for name in existing_models]


@retry_if_compacted
def _model(output: Output, model_type: str, columns: Sequence[str], since: float | None) -> Model:
    partition = Partition.open(output, model_type)
    return Model(output, model_type, partition, partition.read(columns, whole=True), since)


def _running_since(output: Output) -> float | None:
    """When the first of the runs that may be active began, in seconds since the epoch; warns of each such run."""
    records = runs.active_runs(output)
    for record in records:
        path = output.display_path(layout.run_file(record["run_id"]))
        LOG.warning(
            f"{path}: its record says it is active on {record['host']};"
            " images without a row that were written since its start are not reported as stray files"
        )
    starts = [datetime.datetime.fromisoformat(record["started_at"]).timestamp() for record in records]
    return min(starts, default=None)


def _check_repairable(output: Output) -> None:
    """Raise Refused while a run is active: its unfinished files look like damage."""
    active = runs.active_runs(output)
    if active:
        record = output.display_path(layout.run_file(active[0]["run_id"]))
        raise OutputRefused(f"{record}: run still active; wait for its end, or verify without --repair")
    output.check_writable()


def _problems(
    output: Output, models: list[Model], slots: pa.Table | None, options: Verify, progress: Checked
) -> Iterator[Problem]:
    with ThreadPoolExecutor(options.threads) as pool:
        for model in models:
            yield from model.check_parts()
            for snapshot, step in model.folders():
                yield from model.check_folder(snapshot, step, pool, options.deep, progress.add)
                yield from model.check_even(snapshot, step)
            if slots is not None:
                yield from model.check_slots(slots)
    yield from checks.check_features(output)
    yield from checks.check_staging(output)
    for model, numbers in _chosen(models, options):
        yield from redraw(model.model_type, model.partition, numbers)


def _chosen(models: list[Model], options: Verify) -> Iterator[tuple[Model, np.ndarray]]:
    """The numbers of each model's rows whose images are generated again: --redraw of all ok rows, chosen by --seed."""
    ok_rows = [model.newest[np.asarray(model.rows["status"]) == "ok"] for model in models]
    numbers = np.concatenate(ok_rows)
    model_of_number = np.repeat(np.arange(len(models)), [len(rows) for rows in ok_rows])
    chosen = np.random.default_rng(options.seed).permutation(len(numbers))[: options.redraw]
    for place, model in enumerate(models):
        chosen_of_model = chosen[model_of_number[chosen] == place]
        if len(chosen_of_model):
            yield model, numbers[chosen_of_model]


def _build_report(output: Output, models: list[Model], problems: list[Problem]) -> dict[str, Any]:
    counts = collections.Counter(problem.kind for problem in problems)
    fields = ("kind", "name", "detail")
    return {
        "output": str(output.url),
        "models": [model.model_type for model in models],
        "parts": sum(len(model.partition.names) for model in models),
        "rows": sum(model.rows.num_rows for model in models),
        "files": sum(model.files for model in models),
        "bytes": sum(model.bytes for model in models),
        "counts": dict(counts),
        "problems": [{name: getattr(problem, name) for name in fields} for problem in problems],
    }


def _format_report(report: dict[str, Any]) -> str:
    lines = [
        f"{report['output']}: {report['rows']:,} images in the index ({report['parts']:,} parts),"
        f" {report['files']:,} files, {report['bytes']:,} bytes"
    ]
    lines += [f"{count:>9,}  {kind:<20} {checks.KINDS[kind].meaning}" for kind, count in report["counts"].items()]
    for kind in report["counts"]:
        problems = [problem for problem in report["problems"] if problem["kind"] == kind]
        named = (f"{problem['name']}: {problem['detail']}" for problem in problems)
        shown = text_table.first(named, MOST_NAMED, " (--format json names all)")
        lines += ["", f"{kind}:", *(f"  {line}" for line in shown)]
    if not report["counts"]:
        lines.append("clean")
    if "repaired" in report:
        repaired = ", ".join(f"{count:,} {REPAIRED.get(what, what)}" for what, count in report["repaired"].items())
        to_redraw = ", ".join(f"{count:,} of {folder}" for folder, count in report["to_redraw"].items())
        lines += [
            "",
            f"repaired: {repaired or 'nothing'}",
            f"images that `proxyqueue generate` with the run's flags regenerates: {to_redraw or 'none'}",
        ]
    return "\n".join(lines)
