"""`python -m jobs.benchmarks.speed`: proxyqueue, separate runs, scripts and the bare model, interleaved.
Knows where each timing begins and ends; how each variant generates is in `variants`."""

import contextlib
import dataclasses
import gc
import io
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from actors.recipe import Recipe
from jobs.benchmarks import ray_data, timings
from jobs.benchmarks import report as reports
from jobs.benchmarks.machine import GpuBusy, cores, describe
from jobs.benchmarks.options import Speed
from jobs.benchmarks.pool import Arrangement, Pool, arrangements, deal, started_pool
from jobs.benchmarks.work import Work, choose, working_folder
from ray_app import image_files
from ray_app.cli import run_module
from ray_app.cluster import connection
from ray_app.cluster.capacity import Capacity, Request
from ray_app.errors import OK, InputRefused
from ray_app.files import check_place
from ray_app.generation import recipes
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from ray_app.generation.worker import SCHEMA
from ray_app.generation.writer import write_images
from ray_app.index import runs, schema
from ray_app.index.rows import read_rows
from ray_app.machine import versions
from ray_app.output import layout
from ray_app.output.open import open_output

ON_RAY = frozenset({"proxyqueue", "ray_data"})
"""Variants whose processes are Ray's; the others share a pool of processes."""
WRITER_IMAGES = 200
"""Images that are written again, alone, to measure what writing one costs."""


def measure_speed(options: Speed) -> int:
    """Measure and report; the exit code.

    Raises:
        Refused: bad options, a model that can't be loaded, no GPU where one is requested, a variant that fails.
    """
    check_place(Path(options.output), "--output")
    machine = describe()  # first: its load must be that of other work
    with working_folder(options.work_dir) as (folder, kept):
        report = measure(options, machine, folder, kept)
    print(reports.text(report))
    reports.write_json(report, options.output)
    return OK


def measure(options: Speed, machine: dict[str, Any], folder: Path, kept: bool) -> dict[str, Any]:
    """The report."""
    work = choose(options)
    annotations = folder / "prompts.json"
    work.write(annotations, Generate.prompt_field)
    requested = options.generate(annotations, folder)
    requested.check_flags()
    recipe = recipes.resolve(requested)
    if recipe.device == "cuda" and not machine["gpu"]:
        raise InputRefused("--device cuda: this machine has no GPU; on CPUs use --model mid or tiny")
    spread = _candidates(options, recipe)
    with contextlib.ExitStack() as stack:
        ray_start = 0.0
        if not ON_RAY.isdisjoint(options.variants):
            began = time.perf_counter()
            stack.enter_context(connection.connected("local"))
            ray_start = time.perf_counter() - began
        names = (*options.variants, *options.levers)
        others = [name for name in names if name not in ON_RAY]
        processes = max((arrangement.processes for arrangement in spread), default=1) if others else 0
        pool = stack.enter_context(started_pool(recipe, work.steps, processes))
        rounds = _Rounds(work, recipe, requested, pool, folder, kept)
        for name in others:
            rounds.calibrate(name, spread)
        for number in range(options.rounds):
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                seconds = rounds.measure(number, name)
                print(f"round {number + 1} of {options.rounds}: {name} {seconds:.2f} s", file=sys.stderr, flush=True)
    seconds = {name: rounds.seconds[name] for name in names}
    return {
        "machine": machine,
        "versions": versions(),
        "command": sys.argv[1:],
        "options": dataclasses.asdict(options),
        "recipe": dataclasses.asdict(recipe),
        "rounds": options.rounds,
        "work": {
            "slots": len(work.slots),
            "different": len(work.different),
            "steps": work.steps,
            "images": work.images,
        },
        "variants": {
            name: {
                "what": reports.WHAT[name],
                "arrangement": rounds.arrangements[name],
                **reports.rates(work.images, values),
            }
            for name, values in seconds.items()
        },
        "ratios": reports.ratios(seconds, options.levers),
        "likeness": {name: rounds.similarity_to_limit(name) for name in options.levers},
        "proxyqueue": rounds.of_proxyqueue(ray_start) if "proxyqueue" in seconds else None,
    }


def _candidates(options: Speed, recipe: Recipe) -> list[Arrangement]:
    """The arrangements to choose from."""
    candidates = arrangements(cores(), recipe.device)
    if options.arrangement == "auto" or len(candidates) == 1:
        return candidates
    return [candidates[0] if options.arrangement == "processes" else candidates[1]]


class _Rounds:
    """Measures one variant at a time and keeps what was measured."""

    def __init__(self, work: Work, recipe: Recipe, requested: Generate, pool: Pool, folder: Path, kept: bool):
        self.work, self.recipe, self.requested, self.pool = work, recipe, requested, pool
        self.folder, self.kept = folder, kept
        self.seconds: dict[str, list[float]] = {}
        self.arrangements: dict[str, dict[str, Any]] = {}
        self._end_to_end: list[float] = []
        self._shares: list[dict[str, float]] = []
        self._writer_seconds: list[float] = []
        self._gpu_busy: list[float] = []
        self._had_core: list[float] = []
        self._images: dict[str, dict[str, np.ndarray]] = {}

    def calibrate(self, name: str, candidates: list[Arrangement]) -> None:
        """Choose the arrangement that generates a few slots fastest."""
        tried = []
        for candidate in candidates if len(candidates) > 1 else []:
            few = max(arrangement.processes for arrangement in candidates) * self._batch_size(name)
            with self._place("calibration", name) as place:
                tried.append(self._generate(name, candidate, place, few))
        best = candidates[tried.index(min(tried))] if tried else candidates[0]
        trials = zip(candidates, tried, strict=False)
        self.arrangements[name] = {
            **dataclasses.asdict(best),
            "tried": [{**dataclasses.asdict(candidate), "seconds": seconds} for candidate, seconds in trials],
        }

    def measure(self, number: int, name: str) -> float:
        """Seconds of one variant in one round."""
        with self._place(f"round{number}", name) as place:
            if name == "proxyqueue":
                seconds = self._proxyqueue(place)
            elif name == "ray_data":
                seconds = self._ray_data(place)
            else:
                chosen = self.arrangements[name]
                seconds = self._generate(name, Arrangement(chosen["processes"], chosen["threads"]), place)
                files = {str(file.relative_to(place)): file for file in place.rglob("*.png")}
                self._images[name] = {image: image_files.decode(file.read_bytes()) for image, file in files.items()}
        self.seconds.setdefault(name, []).append(seconds)
        return seconds

    def of_proxyqueue(self, ray_start: float) -> dict[str, Any]:
        """Other measurements of proxyqueue, per round, with shares as means."""
        writer, seconds = statistics.median(self._writer_seconds), statistics.median(self.seconds["proxyqueue"])
        return {
            "actors": self.arrangements["proxyqueue"]["processes"],
            "shares": {name: statistics.fmean(round_[name] for round_ in self._shares) for name in self._shares[0]},
            "shares_of_rounds": self._shares,
            "writer": {
                "milliseconds_an_image": 1000 * writer,
                "share_of_cores": writer * self.work.images / (seconds * cores()),
            },
            "end_to_end": {
                "ray_start_seconds": ray_start,  # once: Ray stays up over the rounds
                "seconds": [ray_start + value for value in self._end_to_end],
            },
            "gpu_busy_percent": self._gpu_busy,
            "had_core": statistics.fmean(self._had_core) if self._had_core else None,
        }

    def similarity_to_limit(self, name: str) -> dict[str, Any]:
        """PSNR in dB of an optimization's images to the bare pipeline's, of the last round; None if equal."""
        ours, exact = self._images[name], self._images["limit"]
        each = sorted(image_files.psnr(ours[image], exact[image]) for image in ours.keys() & exact.keys())
        least, median = (None if math.isinf(psnr) else psnr for psnr in (each[0], statistics.median_low(each)))
        return {"pictures": len(each), "least_psnr": least, "median_psnr": median}

    def _batch_size(self, name: str) -> int:
        return 1 if name in ("separate", "callback") else self.recipe.batch_size

    def _generate(self, name: str, arrangement: Arrangement, place: Path, most: int | None = None) -> float:
        slots = self.work.slots if name in ("separate", "callback") else self.work.different
        shares = deal(slots[:most], arrangement.processes, self._batch_size(name))
        return self.pool.generate(name, shares, arrangement.threads, place)

    def _proxyqueue(self, place: Path) -> float:
        """From the first denoise, or the encoding of its prompt, until the last part of the index is written."""
        notes, output = place / "notes", place / "out"
        notes.mkdir()
        began = time.time()
        with GpuBusy() as gpu, contextlib.redirect_stdout(io.StringIO()):
            code = generate(
                dataclasses.replace(self.requested, output_base_path=str(output)), worker=timings.timed_worker(notes)
            )
        ended = time.time()
        gc.collect()  # Ray Data's actors can outlive their run until then
        rows = read_rows(open_output(str(output)), self.recipe.model_type, schema.SCHEMA.names)
        generated = rows["status"].to_pylist().count("ok")
        if code or generated != self.work.images:
            raise InputRefused(
                f"proxyqueue generated {generated:,} of {self.work.images:,} images; run the same with generate"
            )
        actors = timings.read(notes)
        first = timings.first(actors)
        parts = (output / layout.index_folder(self.recipe.model_type)).iterdir()
        last = max(part.stat().st_mtime for part in parts)
        threads = 1 if self.recipe.device == "cpu" else cores()
        self.arrangements["proxyqueue"] = {"processes": len(actors), "threads": threads, "tried": []}
        self._end_to_end.append(ended - began)
        self._shares.append(timings.shares(actors, first, last))
        if self.recipe.device == "cpu":
            self._had_core.append(timings.had_core(actors))
        self._writer_seconds.append(_writer_seconds(rows, output, place / "again"))
        warm = timings.first_end(actors, "denoising")
        if (busy := gpu.percent(warm, last)) is not None:
            self._gpu_busy.append(busy)
        return last - first

    def _ray_data(self, place: Path) -> float:
        """With as many actors and threads as proxyqueue has."""
        batches = math.ceil(len(self.work.slots) / self.recipe.batch_size)
        request = Request(self.requested.gpus(), self.requested.worker_bounds())
        actors = Capacity(connection.living_nodes()).choose_pool_size(request, batches)
        threads = 1 if self.recipe.device == "cpu" else None
        gc.collect()
        seconds = ray_data.generate(self.recipe, self.work.slots, self.work.steps, place, actors, threads)
        gc.collect()
        generated = sum(1 for _ in place.glob("step*/*"))
        if generated != self.work.images:
            raise InputRefused(f"ray_data generated {generated:,} of {self.work.images:,} images")
        self.arrangements["ray_data"] = {"processes": actors, "threads": threads or cores(), "tried": []}
        return seconds

    @contextlib.contextmanager
    def _place(self, stage: str, name: str) -> Iterator[Path]:
        place = self.folder / stage / name
        place.mkdir(parents=True)
        yield place
        if not self.kept or stage == "calibration":
            shutil.rmtree(place)


def _writer_seconds(rows: pa.Table, output: Path, again: Path) -> float:
    """Seconds that the writer stage takes per image, alone on the machine: in a run it works alongside the actors."""
    images = []
    for row in rows.slice(0, WRITER_IMAGES).to_pylist():
        folder, file = row["path"].split("/", 1)
        assert layout.parse_step_folder(folder)
        slot = {**row, "file": file}
        images.append({**row, "image": (output / row["path"]).read_bytes(), "slots": [slot]})
    table = pa.Table.from_pylist(images, schema=SCHEMA)
    writer = open_output(str(again)).writer(runs.new_id())
    writer.begin()
    began = time.perf_counter()
    write_images(table, writer, rows["path"][0].as_py().split("_")[2])
    return (time.perf_counter() - began) / len(images)


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.speed", Speed, measure_speed))
