"""`python -m jobs.benchmarks.gpu.checks`: does generating on this GPU do what it does on CPUs?
Runs proxyqueue's own commands and compares files; measures no speed."""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ray_app import cli
from ray_app.arguments import Options
from ray_app.cli import run_module
from ray_app.cluster import connection
from ray_app.errors import INTERRUPTED, OK, PROBLEMS
from ray_app.files import whole_file
from ray_app.flags import DEFAULT_MODEL_TYPE, ModelType
from ray_app.image_files import decode, psnr

SAMPLE = Path(__file__).resolve().parents[3] / "ray_app" / "sample.json"
REMOVED_EVERY = 3
"""Of the slots, one in so many is removed and generated again: their batches have other slots then."""


@dataclasses.dataclass(frozen=True)
class Check(Options):
    """Generate, and compare files: with those of a second run, of CPUs, and of a run that resumes.

    smoke: the tiny model; a rerun has nothing to generate, verify is clean, a second run gives the same bytes, CPUs
    similar images. resume: the full-size model; slots that are removed are generated again with the same bytes.

    Example: python -m jobs.benchmarks.gpu.checks --check resume

    Exit codes: 0 as it should be, 1 not, 2 refused, 130 interrupted.
    """

    check: Literal["smoke", "resume"] = "smoke"
    """What to check."""
    model_type: ModelType = DEFAULT_MODEL_TYPE
    """Family of the model."""
    try_: Annotated[bool, tyro.conf.arg(name="try")] = False
    """The tiny model on CPUs, to try this command."""
    output: str = "gpu_check.json"
    """File for what was found, as JSON."""


def check(options: Check) -> int:
    """Check and write what was found; the exit code."""
    with tempfile.TemporaryDirectory(prefix="proxyqueue_check_") as folder, connection.connected("local"):
        found = {"smoke": _smoke, "resume": _resume}[options.check](options, Path(folder))
    with whole_file(Path(options.output), "--output") as staged:
        staged.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return OK if all(value is not False for value in found.values()) else PROBLEMS


def _smoke(options: Check, folder: Path) -> dict[str, Any]:
    device = "cpu" if options.try_ else "cuda"
    tiny = ("--model_path", "tiny", "--image_format", "png")
    one = folder / "one"
    ran, _ = _generate(options, one, device, *tiny)
    reran, plan = _generate(options, one, device, *tiny)
    verified, _ = _run("verify", "--output_base_path", str(one), "--model_type", options.model_type, "--deep")
    first = _hashes(one)
    _generate(options, folder / "two", device, *tiny)
    _generate(options, folder / "cpu", "cpu", *tiny)
    return {
        "images": len(first),
        "generated": ran == OK and bool(first),
        "rerun_generates_nothing": reran == OK and _to_generate(plan) == 0,
        "verify_is_clean": verified == OK,
        "same_bytes_twice": bool(first) and _hashes(folder / "two") == first,
        "psnr_to_cpu": _psnr(one, folder / "cpu"),
    }


def _resume(options: Check, folder: Path) -> dict[str, Any]:
    device, model = ("cpu", ("tiny",)) if options.try_ else ("cuda", ("full", "--height", "512", "--width", "512"))
    output = folder / "out"
    ran, _ = _generate(options, output, device, "--model_path", *model)
    before = _hashes(output)
    slots = sorted({Path(name).name for name in before})[::REMOVED_EVERY]
    for name in before:
        if Path(name).name in slots:
            (output / name).unlink()
    resumed, plan = _generate(options, output, device, "--model_path", *model)
    return {
        "images": len(before),
        "removed": _to_generate(plan),
        "generated": ran == resumed == OK and bool(before),
        "same_bytes_resumed": bool(before) and _hashes(output) == before,
    }


def _generate(options: Check, output: Path, device: str, *flags: str) -> tuple[int, dict[str, Any]]:
    arguments = ["--model_type", options.model_type, "--device", device, "--json_file", str(SAMPLE), "--num_prompts"]
    arguments += ["2", "--num_workers", "1", "--output_base_path", str(output), "--format", "json", *flags]
    steps = ["--max_inference_steps", "4"] if options.try_ else []
    return _run("generate", *arguments, *steps)


def _run(*arguments: str) -> tuple[int, dict[str, Any]]:
    """A command of proxyqueue: its exit code, and the JSON that it printed if it printed JSON."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(arguments)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    try:
        return code, json.loads(printed.getvalue())
    except ValueError:
        return code, {}


def _to_generate(report: dict[str, Any]) -> int | None:
    """The number of images that generate had to generate; None if it was refused."""
    return report.get("plan", {}).get("images_to_generate")


def _images(output: Path) -> dict[str, Path]:
    """Each image by its path below the output."""
    return {str(file.relative_to(output)): file for file in sorted(output.glob("proxy_images_*/*/*")) if file.is_file()}


def _hashes(output: Path) -> dict[str, str]:
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in _images(output).items()}


def _psnr(one: Path, other: Path) -> dict[str, float | None]:
    """Median and minimum PSNR in dB of the images that both have and that differ; None if none differs."""
    ours, theirs = _images(one), _images(other)
    each = []
    for name in ours.keys() & theirs.keys():
        each.append(psnr(*(decode(files[name].read_bytes()) for files in (ours, theirs))))
    differing = sorted(value for value in each if math.isfinite(value))
    median, least = (statistics.median(differing), differing[0]) if differing else (None, None)
    return {"compared": len(each), "equal": len(each) - len(differing), "median": median, "min": least}


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.gpu.checks", Check, check))
