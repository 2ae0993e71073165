"""Which versions of torch, diffusers, transformers and pillow generated an output's images.
Knows parts, run records and this process's packages; nothing of what a version changes."""

from collections.abc import Collection, Iterable

from ray_app.index import runs
from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.machine import MISSING, PIXEL_PACKAGES, pixel_versions
from ray_app.output.output import Output


def read_versions(output: Output, model_type: str, run_ids: Collection[str]) -> list[dict[str, str]]:
    """The sets of versions that generated a model's images, by package; of parts that have none, their runs' records.

    Args:
        run_ids: of the runs that generated the images; without any there are no images and no versions.
    """
    if not run_ids:
        return []
    versions = _versions_of_parts(output, model_type)
    if {} in versions:
        versions += [record.get("versions", {}) for record in runs.read_all(output) if record["run_id"] in run_ids]
    return versions


def describe_difference(versions: Iterable[dict[str, str]]) -> str | None:
    """Where these are not this process's: "this output has images of torch 2.12.1, this run has torch 2.13.0".

    Args:
        versions: sets of versions of an output's images, by package.

    Returns:
        None if all are the same. Packages whose version is unknown on either side are left out.
    """
    versions, here = list(versions), pixel_versions()
    of_output, of_run = [], []
    for package in PIXEL_PACKAGES:
        others = {one[package] for one in versions if package in one} - {here[package], MISSING}
        if others and here[package] != MISSING:
            of_output.append(f"{package} {' and '.join(sorted(others))}")
            of_run.append(f"{package} {here[package]}")
    if not of_output:
        return None
    return f"this output has images of {', '.join(of_output)}, this run has {', '.join(of_run)}"


@retry_if_compacted
def _versions_of_parts(output: Output, model_type: str) -> list[dict[str, str]]:
    return Partition.open(output, model_type).versions
