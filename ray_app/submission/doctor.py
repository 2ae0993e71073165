"""The command `doctor`: what a cluster offers, each problem that a run would have there, and what to do about it.
Knows what a run needs; `node_probe` probes nodes, `memory_estimate` sizes models, `capacity` counts actors."""

import collections
import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.families import FAMILIES
from ray_app import machine, text_table
from ray_app.cluster import autoscaling, connection, gpu_probe, node_probe
from ray_app.cluster.capacity import Capacity, Request
from ray_app.cluster.gpu_probe import Gpu
from ray_app.cluster.node_probe import Node
from ray_app.errors import OK, PROBLEMS, Refused, one_line
from ray_app.generation import memory_estimate
from ray_app.generation.options import Generate
from ray_app.output.open import open_output
from ray_app.submission.options import Doctor

GB = 1e9
WHY = {
    "ray": "Ray itself will refuse it",
    "torch": "images would differ in low bits",
    "proxyqueue": "workers would fail",
    "pillow": "image files would differ in their bytes",
}
"""What a differing version leads to, where that is known."""


def doctor(options: Doctor) -> int:
    """Check, and print what the cluster offers and what is wrong; the exit code.

    Raises:
        Refused: flags that generate would refuse too, no cluster at the address, no such model.
    """
    run = _generate_options(options)
    weights, needs, counted = memory_estimate.needed(
        run.model_type, run.model(), run.target_device(), run.variant, vae_path=run.vae_path
    )
    folder = run.model() if os.path.isabs(run.model()) else None
    with connection.connected(options.address), _probe(options) as probe:
        nodes = node_probe.probe_nodes(folder, probe)
        capacity = Capacity(nodes, autoscaling.find())
        gpus, not_tried = _try_gpus(run, nodes)
    problems = [
        *check_answers(nodes),
        *check_imports(nodes),
        *check_versions(nodes),
        *check_model(run, nodes, needs),
        *check_gpus(run, gpus, needs),
        *check_output(options, nodes),
        *(finding.text for finding in capacity.check(Request(run.gpus(), run.worker_bounds()))),
    ]
    if options.format == "json":
        report = _build_report(run, nodes, capacity, weights, needs, problems)
        report |= {"tried_gpus": [dataclasses.asdict(gpu) for gpu in gpus], "nodes_not_tried": not_tried}
        print(json.dumps(report, ensure_ascii=False, indent=1), flush=True)
    else:
        print(
            "\n".join(
                [*_table(nodes), "", *_summary(run, capacity, weights, needs, counted), *_tried(gpus, not_tried), ""]
            )
        )
        print("\n".join(f"problem          {problem}" for problem in problems) or "no problems", flush=True)
    return PROBLEMS if problems else OK


def _build_report(
    run: Generate, nodes: list[Node], capacity: Capacity, weights: float, needs: float, problems: list[str]
) -> dict[str, Any]:
    """Everything that `doctor` shows, in the form of its JSON; sizes are bytes."""
    return {
        "nodes": [
            {
                "name": node.name,
                "is_driver": node.is_driver,
                "cpus": node.cpus,
                "gpus": node.gpus,
                "memory": node.memory,
                "gpu_memory": node.gpu_memory(),
                "versions": (node.answer or {}).get("versions"),
            }
            for node in nodes
        ],
        "autoscaler_max_nodes": capacity.autoscaler.max_nodes if capacity.autoscaler else None,
        "model": {"path": run.model(), "weights": round(weights), "needed_per_actor": round(needs)},
        "output": run.output_base_path,
        "device": run.target_device(),
        "max_actors": capacity.actors_ever(run.gpus()),
        "problems": problems,
    }


def _generate_options(options: Doctor) -> Generate:
    """The flags as generate understands and checks them."""
    shared = {field.name for field in dataclasses.fields(Generate)}
    run = Generate(**{name: value for name, value in vars(options).items() if name in shared})
    run.check_flags()
    return run


def check_answers(nodes: list[Node]) -> Iterator[str]:
    """Nodes that did not answer."""
    for node in nodes:
        if node.answer is None:
            yield (
                f"node {node.name}: gave no answer within {node_probe.ANSWER_SECONDS:.0f} s; check its raylet's log,"
                " or remove it from the cluster"
            )


def check_imports(nodes: list[Node]) -> Iterator[str]:
    """Nodes on which no actor could start."""
    for node in nodes:
        if node.answer and (why := node.answer["lacks"]):
            yield node_probe.cannot_start(node, why)


def check_versions(nodes: list[Node]) -> Iterator[str]:
    """Versions that are not the driver's. Builds of the same torch for CPUs and for CUDA count as the same."""
    our_versions = next(
        (node.answer["versions"] for node in nodes if node.is_driver and node.answer), machine.versions()
    )
    for node in nodes:
        node_versions = (node.answer or {}).get("versions", our_versions)
        for name, version in our_versions.items():
            if node_versions[name] == machine.MISSING and node.answer and node.answer["lacks"]:
                continue  # reported above
            if _release(name, node_versions[name]) != _release(name, version):
                why = f" ({WHY[name]})" if name in WHY else ""
                what = "no" if node_versions[name] == machine.MISSING else node_versions[name]
                install = f"install {name} {version} there"
                yield f"node {node.name}: has {what} {name}, the driver's has {version}{why}; {install}"


def _release(name: str, version: str) -> str:
    return version.rpartition(".")[0] if name == "python" else version.partition("+")[0]


def check_model(run: Generate, nodes: list[Node], needs: float) -> Iterator[str]:
    """Nodes that lack the model, or whose GPU or memory is too small for it."""
    cuda = run.target_device() == "cuda"
    for node in nodes:
        draws = node.gpus if cuda else node.cpus
        if not draws or node.answer is None:
            continue
        if not node.answer["folder"]:
            yield f"node {node.name}: has no {run.model()}; copy it there, or pass a hub id as --model_path"
        if cuda:
            share = min(run.gpus(), 1.0)
            for number, memory in enumerate(node.gpu_memory()):
                if memory * share < needs:
                    part = f" for each of {int(1 / share)} actors" if share < 1 else ""
                    yield (
                        f"node {node.name}: GPU {number} has {memory / GB:.0f} GB and {run.model()} needs about"
                        f" {needs / GB:.0f} GB{part}; {_smaller(run, share)}"
                    )
        else:
            actors = min(node.cpus, (run.worker_bounds() or (0, node.cpus))[1])
            if actors * needs > node.memory:
                fit = int(node.memory / needs)
                advice = f"--num_workers {fit}" if fit else "take a machine with more memory, or --model_path tiny"
                yield (
                    f"node {node.name}: has {node.memory / GB:.0f} GB of memory free and {actors:.0f} actors with"
                    f" {run.model()} need about {actors * needs / GB:.0f} GB; {advice}"
                )


def _try_gpus(run: Generate, nodes: list[Node]) -> tuple[list[Gpu], list[str]]:
    """What `gpu_probe.try_gpus` finds, for a run on GPUs."""
    if run.target_device() != "cuda":
        return [], []
    return gpu_probe.try_gpus(nodes, FAMILIES[run.model_type].dtypes["cuda"])


def check_gpus(run: Generate, gpus: list[Gpu], needs: float) -> Iterator[str]:
    """GPUs that don't compute, have errors, or whose memory other processes use."""
    share = min(run.gpus(), 1.0)
    for gpu in gpus:
        place = f"node {gpu.node}: GPU {gpu.index}"
        if gpu.error:
            yield f"{place} can't be used: {gpu.error}; generate leaves it out"
        if gpu.ecc_errors:
            yield f"{place} has {gpu.ecc_errors} uncorrected ECC errors; reset it, or replace it if they come again"
        if gpu.free is not None and gpu.total is not None and gpu.free * share < needs <= gpu.total * share:
            used = (gpu.total - gpu.free) / GB
            yield f"{place} has only {gpu.free / GB:.0f} GB free: other processes use {used:.0f} GB; end them"


def _tried(gpus: list[Gpu], not_tried: list[str]) -> list[str]:
    """Lines on the GPUs that were tried, one per kind, and on nodes whose GPUs could not be."""
    kinds = collections.Counter((gpu.name, gpu.driver) for gpu in gpus if gpu.error is None)
    lines = [f"GPUs tried       {count} x {name}, driver {driver}" for (name, driver), count in kinds.items()]
    if not_tried:
        lines.append(f"GPUs not tried   in use, or no answer: node {', '.join(not_tried)}")
    return lines


def _smaller(run: Generate, share: float) -> str:
    if share < 1:
        return "raise --gpus_per_actor"
    smallest = memory_estimate.find_smallest_family()
    return "use larger GPUs" + (f", or --model_type {smallest}" if run.model_type != smallest else "")


def check_output(options: Doctor, nodes: list[Node]) -> Iterator[str]:
    """An output that can't be written, or that is another folder elsewhere."""
    try:
        output = open_output(options.output_base_path)
        output.check_writable()
        if output.reachable_from_all_nodes:  # only writing a file would show whether a store accepts files
            name = f".proxyqueue_probe_{uuid.uuid4().hex}"
            output.writer("doctor").write(name, b"")
            output.remove(name)
    except Refused as refused:
        yield str(refused)
    except OSError as error:
        yield f"--output_base_path {options.output_base_path}: {error.strerror}"
    for node in nodes:
        if wrong := (node.answer or {}).get("probe"):
            yield (
                f"node {node.name}: {options.output_base_path} {wrong}; mount it on every node, or leave out"
                " --shared_filesystem: then the driver's node writes"
            )


@contextlib.contextmanager
def _probe(options: Doctor) -> Iterator[str | None]:
    """A file in OUTPUT, or in the nearest existing folder above it, if every node should see it."""
    root = Path(os.path.expanduser(options.output_base_path)).absolute()
    if not options.shared_filesystem or "://" in options.output_base_path:
        yield None
        return
    existing = next(folder for folder in (root, *root.parents) if folder.is_dir())
    path = existing / f".proxyqueue_probe_{uuid.uuid4().hex}"
    try:
        path.touch(exist_ok=False)
    except OSError as error:
        raise Refused(f"--output_base_path {root}: can't be written: {one_line(error)}") from None
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _table(nodes: list[Node]) -> list[str]:
    """The nodes in aligned columns, with a header."""
    rows = [["node", "CPUs", "GPUs", "memory", "GPU memory", "python", "ray", "torch"]]
    for node in nodes:
        installed = (node.answer or {}).get("versions", {})
        memory = ", ".join(f"{size / GB:.0f} GB" for size in node.gpu_memory()) or ("unknown" if node.gpus else "")
        name = f"{node.name} (driver)" if node.is_driver else node.name
        row = [name, f"{node.cpus:g}", f"{node.gpus:g}", f"{node.memory / GB:.0f} GB", memory]
        rows.append([*row, *(installed.get(package, "?") for package in ("python", "ray", "torch"))])
    return text_table.align(rows)


def _summary(run: Generate, capacity: Capacity, weights: float, needs: float, counted: bool) -> list[str]:
    where = "every node writes" if run.shared_filesystem else "the driver's node writes"
    if "://" in run.output_base_path:
        where = "object storage, tried from here; workers need credentials of their own"
    source = "of its files" if counted else "of the published model"
    autoscaler = capacity.autoscaler
    can_add = f"can start {autoscaler.max_nodes} nodes" if autoscaler else "none"
    device = "GPUs" if run.target_device() == "cuda" else "CPUs"
    return [
        f"autoscaler       {can_add}",
        f"model            {run.model()}: {weights / GB:.1f} GB {source} as loaded,"
        f" about {needs / GB:.1f} GB per actor",
        f"output           {run.output_base_path}: {where}",
        f"actors           room for {capacity.actors_ever(run.gpus())}, on {device}",
    ]
