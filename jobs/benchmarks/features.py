"""`python -m jobs.benchmarks.features`: features beside a loop over files and the encoder alone, on the same images.
Knows what is measured after what; a mid-size CLIP of random weights costs what one with real weights does."""

import contextlib
import dataclasses
import io
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from actors.encoders import Encoder
from jobs.benchmarks.machine import cores, describe
from jobs.benchmarks.report import write_json
from jobs.benchmarks.work import working_folder
from ray_app.arguments import AtLeast, Options
from ray_app.cli import run_module
from ray_app.cluster import connection
from ray_app.errors import OK, Refused
from ray_app.features import encoder_card
from ray_app.features.features import features
from ray_app.features.options import Features
from ray_app.features.worker import FeatureWorker
from ray_app.files import check_place
from ray_app.machine import versions

WIDTH, LAYERS, PATCH = 384, 12, 16
"""Of the vision part: a ViT-S/16 at 224 px, 22 M parameters."""
PIXELS, VECTOR_SIZE = 512, 512
SAMPLE_SECONDS = 0.5
VARIANTS = ("loop", "features", "limit")


@dataclasses.dataclass(frozen=True)
class Measure(Options):
    """Measure features beside what scripts do and beside the encoder alone: same images, same cores.

    loop: file by file, decode and encode in turn, each step's folder after the other, as retrieval scripts do.
    features: proxyqueue features, from its first batch to its end. limit: the encoder on decoded batches in memory.
    On CPUs nothing else should be running.

    Example: python -m jobs.benchmarks.features --images 200 --rounds 3

    Exit codes: 0 measured, 2 refused, 130 interrupted.
    """

    images: Annotated[int, AtLeast(1)] = 200
    """Images of each step's folder."""
    steps: Annotated[int, AtLeast(1)] = 2
    """Folders."""
    rounds: Annotated[int, AtLeast(1)] = 3
    """How often each is measured."""
    batch_size: Annotated[int, AtLeast(1)] = 16
    """Of features and of the limit."""
    num_workers: str | None = None
    """Actors of features; default one per core."""
    work_dir: str | None = None
    """Where images and vectors go; default a temporary folder, removed."""
    output: str = "features.json"
    """File for everything that was measured, as JSON."""


def measure(options: Measure) -> int:
    """Measure and report; the exit code.

    Raises:
        Refused: a place that can't be written, or features that fail.
    """
    check_place(Path(options.output), "--output")
    machine = describe()
    with working_folder(options.work_dir) as (folder, _):
        files = write_images(folder / "images", options)
        save_clip(folder / "clip")
        encoder = encoder_card.resolve(_flags(folder, "none", options))
        rounds = []
        with connection.connected(None):
            for number in range(options.rounds):
                order = [*VARIANTS[number % 3 :], *VARIANTS[: number % 3]]
                rounds.append({name: _measure_one(name, folder, files, encoder, options, number) for name in order})
                print(_sentence(number, rounds[-1], len(files)), file=sys.stderr, flush=True)
    report = {
        "machine": machine,
        "versions": versions(),
        "options": dataclasses.asdict(options),
        "images": len(files),
        "rounds": rounds,
        "features_to_loop": _ratio(rounds, "loop"),
        "features_to_limit": _ratio(rounds, "limit"),
    }
    print(
        f"features: {report['features_to_loop']:.2f} times the loop's images/s,"
        f" {report['features_to_limit']:.2f} times the encoder's alone (medians of {len(rounds)} rounds' own ratios)"
    )
    write_json(report, options.output)
    return OK


def write_images(folder: Path, options: Measure) -> list[Path]:
    """Noise in blocks, as jpgs of 512 px, in a folder per step."""
    from PIL import Image

    chance = np.random.default_rng(0)
    files = []
    for step in range(options.steps):
        combined = folder / f"step{step}" / "combined"
        combined.mkdir(parents=True)
        for number in range(options.images):
            blocks = chance.integers(0, 256, (PIXELS // 8, PIXELS // 8, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(buffer, "JPEG", quality=95)
            files.append(combined / f"{step}_{number}.jpg")
            files[-1].write_bytes(buffer.getvalue())
    return files


def save_clip(folder: Path) -> None:
    """A CLIP of random weights with a mid-size vision part, a small text part and the tiny SDXL's tokenizer."""
    import torch
    import transformers
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    from actors import tiny

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder("sdxl") / "tokenizer")
    torch.manual_seed(0)
    vision = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS}
    vision |= {"num_attention_heads": WIDTH // 64, "patch_size": PATCH}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
    text |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=VECTOR_SIZE)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _flags(folder: Path, name: str, options: Measure) -> Features:
    return Features(
        encoder=str(folder / "clip"),
        device="cpu",
        images=str(folder / "images"),
        output_base_path=str(folder / name),
        batch_size=options.batch_size,
        num_workers=options.num_workers,
    )


def _measure_one(
    name: str, folder: Path, files: list[Path], encoder: Encoder, options: Measure, number: int
) -> dict[str, Any]:
    if name == "features":
        return _measure_features(folder, options, len(files), number)
    measured = _measure_loop(files, encoder) if name == "loop" else _measure_limit(files, encoder)
    return {"images_per_second": len(files) / measured}


def _measure_loop(files: list[Path], encoder: Encoder) -> float:
    """Seconds of one file after the other, with all threads of the machine."""
    from actors.encoder import ImageEncoder

    loaded = ImageEncoder(encoder, cores())
    loaded({"image": [files[0].read_bytes()], "text": [None]})
    began = time.perf_counter()
    for file in files:
        loaded({"image": [file.read_bytes()], "text": [None]})
    return time.perf_counter() - began


def _measure_limit(files: list[Path], encoder: Encoder) -> float:
    """Seconds of the model alone, on batches that are decoded, with all threads of the machine."""
    from actors.encoder import ImageEncoder

    loaded = ImageEncoder(encoder, cores())
    prepared = loaded.prepare([file.read_bytes() for file in files], [None] * len(files))
    size = encoder.batch_size
    loaded.encode(prepared[:size])
    began = time.perf_counter()
    for start in range(0, len(prepared), size):
        loaded.encode(prepared[start : start + size])
    return time.perf_counter() - began


def _measure_features(folder: Path, options: Measure, images: int, number: int) -> dict[str, Any]:
    """Images per second from the first batch to the end of the command, and the driver's memory meanwhile."""
    notes = folder / f"notes{number}"
    notes.mkdir()
    with _memory() as megabytes, contextlib.redirect_stdout(sys.stderr):
        if features(_flags(folder, f"out{number}", options), noting_worker(notes)) != OK:
            raise Refused("features failed; see the lines above")
        ended = time.time()
    began = min(float(file.read_text()) for file in notes.iterdir())
    return {
        "images_per_second": images / (ended - began),
        "driver_mb": [round(value) for value in (megabytes[0], max(megabytes), megabytes[-1])],
    }


def noting_worker(notes: Path) -> type[FeatureWorker]:
    """A worker that writes to a file of its own when its first batch begins."""

    class NotingWorker(FeatureWorker):
        """Defined here so that it is sent to the actors together with its folder."""

        def prepare(self, batch: dict[str, list[Any]]) -> list[Any]:
            file = notes / str(self.actor_id)
            if not file.exists():
                file.write_text(str(time.time()))
            return super().prepare(batch)

    return NotingWorker


@contextlib.contextmanager
def _memory() -> Iterator[list[float]]:
    """This process's memory in MB, sampled while the block runs."""
    samples, over = [_megabytes()], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            samples.append(_megabytes())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def _megabytes() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


def _ratio(rounds: list[dict[str, Any]], other: str) -> float:
    ratios = [one["features"]["images_per_second"] / one[other]["images_per_second"] for one in rounds]
    return statistics.median(ratios)


def _sentence(number: int, one: dict[str, Any], images: int) -> str:
    rates = ", ".join(f"{name} {one[name]['images_per_second']:.1f}" for name in VARIANTS)
    low, high, last = one["features"]["driver_mb"]
    memory = f"driver {low} MB, at most {high}, at the end {last}"
    return f"round {number + 1}: {images:,} images, images/s: {rates}; {memory}"


if __name__ == "__main__":
    sys.exit(run_module("jobs.benchmarks.features", Measure, measure))
