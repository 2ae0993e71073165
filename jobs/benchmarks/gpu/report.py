"""The GPU tables of BENCHMARKS.md, from what the pieces found; what was not measured says so.
Knows tables and the pieces' names; nothing of how they are run."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

NOT_MEASURED = "not measured"
CASES = (("sdxl", 512), ("sdxl", 1024), ("flux", 512), ("flux", 1024))
TITLES = {"sdxl": "SDXL", "flux": "Flux"}
VARIANTS = ("separate", "callback", "ray_data", "proxyqueue", "limit")
TARGETS = {"callback": ("5", "1.2"), "limit": ("0.97", ""), "utilization": ("98 %", "")}
"""Of proxyqueue's ratios at 512 px: for SDXL, for Flux."""
OPTIMIZATIONS = ("compiled", "vae_float16", "vae_bfloat16", "channels_last", "fused_qkv", "batch_of_one")
BATCHES = {("sdxl", 512): 8, ("sdxl", 1024): 2, ("flux", 512): 4, ("flux", 1024): 1}
CHECKS = {
    "smoke": {
        "generated": "images of the sample, tiny model",
        "rerun_generates_nothing": "a rerun has nothing to generate",
        "verify_is_clean": "`verify --deep` finds no problem",
        "same_bytes_twice": "a second run gives the same bytes",
        "psnr_to_cpu": "PSNR to the images of CPUs, dB: median, min",
    },
    "resume": {"same_bytes_resumed": "full size, resumed in other batches: the same bytes"},
}

MEMORY_COLUMNS = ("loading, s", "weights, GB", "batch, GB (estimate)", "context and rest, GB (estimate)")
MEMORY_COLUMNS += ("step, ms per image", "decode, ms per image")

Figures = dict[str, Any]


def markdown(report: dict[str, Any]) -> str:
    """All tables, each with its heading; `report` is that of `python -m jobs.benchmarks.gpu`, or {} for none."""
    pieces = {name: entry.get("figures") or {} for name, entry in report.get("pieces", {}).items()}
    warning = ["With the tiny models on CPUs: these figures mean nothing."] if report.get("is_try") else []
    return "\n\n".join([*warning, *tables(report, pieces), _of_pieces(report.get("pieces", {}))]) + "\n"


def tables(report: dict[str, Any], pieces: dict[str, Figures]) -> list[str]:
    """The tables that BENCHMARKS.md has."""
    titles = [f"{TITLES[model_type]} {pixels} px" for model_type, pixels in CASES]
    with_targets = ["target, SDXL", *titles[:2], "target, Flux", *titles[2:]]
    return [
        _machine(report),
        _table(["check", "SDXL", "Flux"], _checks(pieces)),
        _table(["ratio of images/s", *with_targets], _ratios(pieces)),
        _table(["images/s", *titles], _images_per_second(pieces)),
        _table(["optimization", "SDXL: effect", "PSNR, dB", "Flux: effect", "PSNR, dB"], _optimizations(pieces)),
        _table(
            ["model, batch", *MEMORY_COLUMNS],
            _memory(pieces),
        ),
    ]


def _machine(report: dict[str, Any]) -> str:
    machine, versions = report.get("machine") or {}, report.get("versions") or {}
    gpu = machine.get("gpu")
    facts = f"{gpu}, driver {report.get('driver')}, {machine['cores']} cores of {machine['cpu']}" if gpu else None
    return _table(
        ["", ""],
        [
            ["machine", facts or f"{NOT_MEASURED}: no GPU was available"],
            ["versions", ", ".join(f"{name} {version}" for name, version in versions.items()) or NOT_MEASURED],
            ["command", "`python -m jobs.benchmarks.gpu --minutes 30`"],
        ],
    )


def _checks(pieces: dict[str, Figures]) -> Iterable[list[str]]:
    for kind, names in CHECKS.items():
        for name, text in names.items():
            found = [pieces.get(f"{kind}_{model_type}", {}) for model_type in TITLES]
            yield [text, *(_checked(figures, name) for figures in found)]


def _checked(figures: Figures, name: str) -> str:
    value = figures.get(name)
    if isinstance(value, dict):
        of = f"of {value['compared']}, {value['equal']} equal"
        return f"{_psnr(value['median'])}, {_psnr(value['min'])} ({of})"
    if name == "generated" and value:
        return f"{figures['images']}"
    return NOT_MEASURED if value is None else "yes" if value else "no"


def _ratios(pieces: dict[str, Figures]) -> Iterable[list[str]]:
    for other in ("separate", "callback", "ray_data", "limit"):
        cells = [_ratio(_of_case(pieces, case, f"proxyqueue/{other}")) for case in CASES]
        yield _with_targets(f"proxyqueue / {other}", other, cells)
    cells = [_cell(_utilization(pieces, case), lambda busy: f"{busy:.1f} %") for case in CASES]
    yield _with_targets("GPU utilization after warm-up", "utilization", cells)


def _with_targets(title: str, key: str, cells: Sequence[str]) -> list[str]:
    sdxl, flux = TARGETS.get(key, ("", ""))
    return [title, sdxl, *cells[:2], flux, *cells[2:]]


def _of_case(pieces: dict[str, Figures], case: tuple[str, int], ratio: str) -> Figures | None:
    """A ratio of a case, of its longest run."""
    for kind in ("long", "speed", "separate"):
        found = _piece(pieces, kind, case).get("ratios", {}).get(ratio)
        if found:
            return found
    return None


def _utilization(pieces: dict[str, Figures], case: tuple[str, int]) -> float | None:
    for kind in ("long", "speed"):
        of_rounds = (_piece(pieces, kind, case).get("proxyqueue") or {}).get("gpu_busy_percent")
        if of_rounds:
            return statistics.median(of_rounds)
    return None


def _images_per_second(pieces: dict[str, Figures]) -> Iterable[list[str]]:
    for variant in VARIANTS:
        rates = []
        for case in CASES:
            kinds = ("speed", "separate")
            measured = (_piece(pieces, kind, case).get("variants", {}).get(variant, {}) for kind in kinds)
            found = (figures["median_images_per_second"] for figures in measured if figures)
            rates.append(_cell(next(found, None), lambda rate: f"{rate:.2f}"))
        yield [variant, *rates]


def _piece(pieces: dict[str, Figures], kind: str, case: tuple[str, int]) -> Figures:
    return pieces.get(f"{kind}_{case[0]}_{case[1]}", {})


def _optimizations(pieces: dict[str, Figures]) -> Iterable[list[str]]:
    for name in OPTIMIZATIONS:
        cells = []
        for model_type in TITLES:
            of_family = [figures for piece, figures in pieces.items() if piece.endswith(f"_{model_type}")]
            found = [figures for figures in of_family if f"{name}/limit" in figures.get("ratios", {})]
            ratio = found[0]["ratios"][f"{name}/limit"] if found else None
            similarity = found[0]["likeness"][name] if found else None
            cells += [_ratio(ratio), _cell(similarity, lambda entry: _psnr(entry["median_psnr"]))]
        yield [name, *cells]


def _memory(pieces: dict[str, Figures]) -> Iterable[list[str]]:
    for (model_type, pixels), batch_size in BATCHES.items():
        probe = pieces.get(f"probe_{model_type}", {})
        cases = (case for case in probe.get("cases", []) if case["pixels"] == pixels)
        case = next((case for case in cases if case["batch_size"] == batch_size), {})
        rest = None
        if case.get("outside_torch_gb") is not None:
            rest = case["outside_torch_gb"] + case["fragments_gb"] - probe["gpu_used_before_gb"]
        yield [
            f"{TITLES[model_type]} {pixels} px, {batch_size}",
            _number(probe.get("load_seconds")),
            _number(probe.get("weights_gb")),
            _beside(case.get("batch_gb"), case.get("estimated_batch_gb")),
            _beside(rest, probe.get("estimated_overhead_gb")),
            _number(case.get("step_ms")),
            _number(case.get("decode_ms")),
        ]


def _of_pieces(entries: dict[str, Figures]) -> str:
    rows = []
    for name, entry in entries.items():
        seconds = f"{entry['planned_seconds']} s wanted" if entry["seconds"] is None else f"{entry['seconds']:.0f} s"
        rows.append([name, entry["state"], seconds, f"`{entry['command']}`"])
    return _table(["piece", "state", "seconds", "command"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" if line[0] != "---" else "|---" * len(line) + "|" for line in lines)


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return NOT_MEASURED if value is None else show(value)


def _number(value: float | None) -> str:
    return _cell(value, lambda number: f"{number:.1f}")


def _ratio(ratio: Figures | None) -> str:
    return _cell(ratio, lambda entry: f"{entry['median']:.3f} ({entry['min']:.3f} to {entry['max']:.3f})")


def _beside(measured: float | None, estimated: float | None) -> str:
    return NOT_MEASURED if measured is None else f"{measured:.1f} ({estimated:.1f})"


def _psnr(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"
