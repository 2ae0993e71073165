"""A benchmark's report: ratios from seconds, its tables, its JSON file.
Knows figures; nothing of how they were measured."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_app.files import whole_file

WHAT = {
    "separate": "one run per number of steps, batch 1, images saved",
    "callback": "decodes and saves in the callback, batch 1, the last image decoded twice",
    "ray_data": "a Ray Data script: map_batches with an actor pool, decodes and saves in the callback, no index",
    "proxyqueue": "Ray, actors, writer and index; from the first denoise to the last committed row",
    "limit": "the pipeline's loop over full batches and the decodes; no encoding, no files",
    "batch_of_one": "the bare pipeline, prompt by prompt",
    "usual_malloc": "the bare pipeline with the C library's own settings for freed memory",
    "vae_bfloat16": "the bare pipeline with the VAE in bfloat16",
    "vae_float16": "the bare pipeline with the VAE in float16",
    "channels_last": "the bare pipeline with denoiser and VAE in torch's channels_last format",
    "fused_qkv": "the bare pipeline with fused projections of queries, keys and values",
    "compiled": "the bare pipeline compiled as with --compile",
}


def rates(images: int, seconds: Sequence[float]) -> dict[str, Any]:
    """A variant's figures: images/s counts requested images, so generating duplicates only once raises it."""
    each = [images / value for value in seconds]
    return {"seconds": list(seconds), "images_per_second": each, "median_images_per_second": statistics.median(each)}


def ratios(seconds: dict[str, list[float]], levers: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """How many times as many images/s: proxyqueue to each other variant, each optimization to the bare pipeline.

    Computed per round; the result is their median.
    """
    pairs = [("proxyqueue", name) for name in seconds if name not in ("proxyqueue", *levers)]
    pairs += [(optimization, "limit") for optimization in levers]
    entry = {}
    for one, other in pairs:
        if one in seconds:
            each = [longer / shorter for longer, shorter in zip(seconds[other], seconds[one], strict=True)]
            spread = {"median": statistics.median(each), "min": min(each), "max": max(each)}
            entry[f"{one}/{other}"] = {"each": each, **spread}
    return entry


def text(report: dict[str, Any]) -> str:
    """The tables."""
    machine, work, recipe = report["machine"], report["work"], report["recipe"]
    gpu = machine["gpu"] or "no GPU"
    lines = [
        f"machine          {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:g} GB, {gpu};"
        f" load before {machine['load']:g}",
        f"versions         {', '.join(f'{name} {version}' for name, version in report['versions'].items())}",
        f"model            {recipe['model_path']} {recipe['model_type']}, {recipe['width']} x {recipe['height']},"
        f" {recipe['num_inference_steps']} steps, {recipe['dtype']} on {recipe['device']}",
        f"work             {work['slots']:,} slots, {work['different']:,} unique, at {len(work['steps'])} steps:"
        f" {work['images']:,} images; batches of {recipe['batch_size']}; rounds: {report['rounds']}",
        "",
        f"{'variant':<16} {'images/s':>9} {'seconds: median, min, max':>30}   arrangement",
    ]
    for name, variant in report["variants"].items():
        seconds = variant["seconds"]
        spread = f"{statistics.median(seconds):10.2f}{min(seconds):10.2f}{max(seconds):10.2f}"
        lines.append(
            f"{name:<16} {variant['median_images_per_second']:9.2f} {spread}   {arrangement(variant['arrangement'])}"
        )
    if report["ratios"]:
        lines += ["", f"{'ratio, images/s':<24} {'median':>8} {'min':>8} {'max':>8}"]
    for name, ratio in report["ratios"].items():
        lines.append(f"{name:<24} {ratio['median']:8.3f} {ratio['min']:8.3f} {ratio['max']:8.3f}")
    if report["likeness"]:
        lines += ["", f"{'similarity to limit':<26} {'PSNR, dB':>8} {'min':>8}"]
    for name, entry in report["likeness"].items():
        values = (entry["median_psnr"], entry["least_psnr"])
        median, least = ("equal" if value is None else f"{value:.1f}" for value in values)
        lines.append(f"{name:<26} {median:>8} {least:>8}   of {entry['pictures']}")
    return "\n".join([*lines, *_of_proxyqueue(report.get("proxyqueue"))])


def arrangement(entry: dict[str, Any]) -> str:
    """How a variant was spread over the machine."""
    processes, threads = entry["processes"], entry["threads"]
    processes_word = "process" if processes == 1 else "processes"
    threads_word = "thread" if threads == 1 else "threads"
    words = f"{processes} {processes_word} of {threads} {threads_word}"
    tried = ", ".join(f"{trial['processes']}x{trial['threads']}: {trial['seconds']:.2f} s" for trial in entry["tried"])
    return f"{words} (tried {tried})" if tried else words


def write_json(report: dict[str, Any], output: str) -> None:
    """Write everything that was measured to the file that `--output` names.

    Raises:
        Refused: it can't be written.
    """
    path = Path(output)
    with whole_file(path, "--output") as staged:
        staged.write_text(json.dumps(report, indent=1) + "\n")
    print(f"all figures      {path}")


def _of_proxyqueue(entry: dict[str, Any] | None) -> list[str]:
    if not entry:
        return []
    shares = ", ".join(f"{name} {share:.1%}" for name, share in entry["shares"].items())
    writer, end_to_end = entry["writer"], entry["end_to_end"]
    lines = [
        "",
        f"where the time goes in proxyqueue's {entry['actors']} actors: {shares}",
        f"the writer alongside: {writer['milliseconds_an_image']:.2f} ms per image, measured alone,"
        f" {writer['share_of_cores']:.1%} of the run's cores",
        f"end to end: {statistics.median(end_to_end['seconds']):.1f} s, including loading models and"
        f" {end_to_end['ray_start_seconds']:.1f} s for starting Ray",
    ]
    if entry["had_core"] is not None:
        lines.append(
            f"while they worked, actors had a core {entry['had_core']:.1%} of the time; the rest went to Ray's own"
            " processes, the driver, the writer"
        )
    if entry["gpu_busy_percent"]:
        lines.append(f"GPU utilization after warm-up: {statistics.median(entry['gpu_busy_percent']):.1f} %")
    return lines
