"""The measurement of a GPU: what fits, what fails or hangs costs no other piece, and the tables that it fills."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from jobs.benchmarks.gpu import __main__ as gpu
from jobs.benchmarks.gpu import plan, report
from jobs.benchmarks.gpu.__main__ import Measurement, measure_gpu
from jobs.benchmarks.gpu.pieces import PIECES, Piece, Size
from jobs.benchmarks.gpu.rates import LOAD_SECONDS, assumed_rates, probed_rates
from jobs.benchmarks.gpu.run import run
from jobs.benchmarks.options import Speed
from ray_app.cli import run_module
from tests.conftest import ROOT
from tests.support.processes import are_gone, comes_true, wait_for

MODULE = "jobs.benchmarks.gpu"
PYTHON = [sys.executable, "-c"]


@dataclasses.dataclass(frozen=True)
class Scripted(Piece):
    """A piece that runs a line of Python, with its file as `output`."""

    script: str = ""

    def command(self, size: Size | None, output: Path, is_try: bool) -> list[str]:
        return [*PYTHON, f"output = {str(output)!r}; {self.script}", str(output)]


def scripted(name: str, script: str, seconds: float = 1) -> Scripted:
    return Scripted(name, "smoke", "sdxl", guessed_seconds=seconds, is_tried=True, script=script)


def test_a_piece_that_fails_or_hangs_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TRY_SECONDS", 1.0)
    measured = [
        scripted("fails", "raise SystemExit('no kernel image')"),
        scripted("writes_nothing", "pass"),
        scripted("hangs", "import time; open(output, 'w').write('{\"images\": 3}'); time.sleep(60)"),
        scripted("smoke_sdxl", "open(output, 'w').write('{\"generated\": true, \"images\": 60}')"),
    ]
    options = Measurement(output=str(tmp_path / "gpu.json"), try_=True)
    measurement = gpu._Measurement(options)
    for number, piece in enumerate(measured):
        measurement.take(piece, measured[number + 1 :])
        assert list(json.loads((tmp_path / "gpu.json").read_text())["pieces"]) == [
            p.name for p in measured[: number + 1]
        ]
    entries = json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert {name: entry["state"] for name, entry in entries.items()} == {
        "fails": "failed", "writes_nothing": "failed", "hangs": "out of time", "smoke_sdxl": "done",
    }  # fmt: skip
    assert "no kernel image" in entries["fails"]["said"]
    assert entries["hangs"]["figures"] == {"images": 3}  # what it had until then
    assert measurement.has_failed
    text = (tmp_path / "gpu.md").read_text()
    assert "| images of the sample, tiny model | 60 | not measured |" in text
    assert "| hangs | out of time | 1 s |" in text.replace("| 2 s |", "| 1 s |")


def test_a_piece_that_does_not_fit_is_left_out_with_its_command_and_seconds(tmp_path):
    options = Measurement(output=str(tmp_path / "gpu.json"), minutes=0.5)
    measurement = gpu._Measurement(options)
    measurement.take(scripted("large", "pass", seconds=99), [])
    measurement.take(scripted("small", "open(output, 'w').write('{}'); raise SystemExit(1)", seconds=2), [])
    entries = json.loads((tmp_path / "gpu.json").read_text())["pieces"]
    assert [entry["state"] for entry in entries.values()] == ["left out", "failed"]
    assert (entries["large"]["planned_seconds"], entries["large"]["seconds"]) == (99, None)
    assert entries["large"]["command"].startswith("python -c")
    assert "| large | left out | 99 s wanted | `python -c" in (tmp_path / "gpu.md").read_text()


def test_all_that_a_command_started_ends_with_it(tmp_path):
    """A child in a session of its own, as Ray's processes are, and that ignores the end of its parent."""
    child = "import time; time.sleep(99)"
    parent = (
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True);"
        "print(p.pid, flush=True); time.sleep(99)"
    )
    began = time.monotonic()
    ended = run([*PYTHON, parent], 1.5, tmp_path / "said.txt")
    assert ended.code is None
    assert time.monotonic() - began < 20
    wait_for("the child ends", lambda: are_gone([int(ended.said.split()[0])]), 10)


def test_ctrl_c_ends_the_piece_too(tmp_path):
    log = tmp_path / "said.txt"

    def interrupt() -> None:
        comes_true(lambda: log.exists() and log.read_text(), 30)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run([*PYTHON, "import os, time; print(os.getpid(), flush=True); time.sleep(99)"], 60, log)
    assert are_gone([int(log.read_text().split()[0])])


def test_each_piece_leaves_enough_for_those_after_it():
    first, second = (piece for piece in PIECES if piece.name in ("speed_sdxl_512", "long_sdxl_512"))
    rates = assumed_rates("sdxl", 512, 8)
    least, most = (first.seconds(size, rates) for size in (first.sizes[-1], first.sizes[0]))
    assert least < most
    others = second.least_seconds(rates)
    assert plan.choose_size(first, [second], most + others, {}) == first.sizes[0]
    assert plan.choose_size(first, [second], most + others - 1, {}) != first.sizes[0]
    assert plan.choose_size(first, [second], 1, {}) == first.sizes[-1]


def test_seconds_follow_from_the_probe():
    """Of a GPU that is half as fast as assumed, twice as long but for what does not depend on it."""
    assumed = assumed_rates("flux", 512, 4)
    case = {"pixels": 512, "batch_size": 4, "step_ms": 2000 * assumed.step, "decode_ms": 2000 * assumed.decode}
    found = probed_rates({"load_seconds": LOAD_SECONDS["flux"], "cases": [case]}, "flux", 512, 4)
    (piece,) = (piece for piece in PIECES if piece.name == "long_flux_512")
    size = Size(prompts=20, rounds=1)  # of which 19 are unique: five batches, twice
    work = 2 * 20 * (32 * assumed.step + 5 * assumed.decode)
    assert piece.seconds(size, found) - piece.seconds(size, assumed) == pytest.approx(work)


def test_every_command_of_a_piece_is_one_that_its_program_accepts(tmp_path):
    from jobs.benchmarks.gpu.checks import Check
    from jobs.benchmarks.gpu.probe import Probe

    classes = {"jobs.benchmarks.speed": Speed, f"{MODULE}.checks": Check, f"{MODULE}.probe": Probe}
    for piece in PIECES:
        size = piece.sizes[0] if piece.sizes else None
        _, _, module, *arguments = piece.command(size, tmp_path / "x.json", is_try=False)
        assert run_module(module, classes[module], lambda options: 0, arguments) == 0, arguments


def test_benchmarks_md_has_the_tables_that_the_command_writes():
    """The same rows and columns; figures are filled in where they were measured."""

    def shape(table: str) -> list[tuple[str, int]]:
        return [(line.split("|")[1].strip(), line.count("|")) for line in table.splitlines()]

    page = (ROOT / "BENCHMARKS.md").read_text().split("\n\n")
    tables = [shape(block) for block in page if block.startswith("|")]
    for table in report.tables({}, {}):
        assert shape(table) in tables, table


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--pieces smoke_sdxI", "--pieces smoke_sdxI: no such piece; did you mean smoke_sdxl?"),
        ("--minutes 0", "--minutes 0: must be above 0 and below 1,440"),
        ("--minutes x", "--minutes x: takes FLOAT (see python -m jobs.benchmarks.gpu --help)"),
        ("--output gpu.md", "--output gpu.md: is the name of the tables; name a .json file"),
        ("--output nowhere/gpu.json", "--output nowhere/gpu.json: its folder does not exist"),
        ("--tri", "--tri: no such flag; did you mean --try? (see python -m jobs.benchmarks.gpu --help)"),
        ("", "this machine has no GPU that nvidia-smi lists; --try runs with the tiny models on CPUs"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, line, capsys):
    assert run_module(MODULE, Measurement, measure_gpu, flags.split()) == 2
    assert capsys.readouterr() == ("", f"proxyqueue: {line}\n")


def test_the_plan_is_shown_without_a_gpu(capsys):
    assert run_module(MODULE, Measurement, measure_gpu, ["--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [piece.name for piece in PIECES]
    fitting = sum(float(line.split()[1]) for line in lines if " fits " in line)
    assert 0.8 * 1800 < fitting <= 1800


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes on a quiet machine
def test_the_whole_command_with_tiny_models(tmp_path):
    output = tmp_path / "gpu.json"
    command = [*(sys.executable, "-m", MODULE), "--try", "--output", str(output)]
    ended = run(command, 850, tmp_path / "said.txt")
    assert ended.code == 0, ended.said
    entries = json.loads(output.read_text())["pieces"]
    tried = {piece.name for piece in PIECES if piece.is_tried}
    assert {name: entry["state"] for name, entry in entries.items()} == {
        piece.name: "done" if piece.name in tried else "left out" for piece in PIECES
    }
    figures = {name: entries[name]["figures"] for name in tried}
    assert figures["smoke_sdxl"]["psnr_to_cpu"]["equal"] == figures["smoke_sdxl"]["images"] > 0
    assert figures["resume_sdxl"]["same_bytes_resumed"]
    assert 0 < figures["resume_sdxl"]["removed"] < figures["resume_sdxl"]["images"]
    assert figures["speed_sdxl_512"]["ratios"].keys() == {
        "proxyqueue/callback", "proxyqueue/ray_data", "proxyqueue/limit"
    }  # fmt: skip
    text = output.with_suffix(".md").read_text()
    assert text.startswith("With the tiny models on CPUs: these figures mean nothing.")
    assert "| a rerun has nothing to generate | yes | not measured |" in text
