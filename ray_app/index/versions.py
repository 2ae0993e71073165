"""Which versions of torch, diffusers, transformers and pillow generated an output's images.
Knows parts, run records and this process's packages; nothing of what a version changes."""

from collections.abc import Collection

from ray_app.index import runs
from ray_app.index.partition import Partition, retry_if_compacted
from ray_app.machine import MISSING, PIXEL_PACKAGES, pixel_versions
from ray_app.output.output import Output


def describe_difference(output: Output, model_type: str, run_ids: Collection[str]) -> str | None:
    """Where an output's versions are not this process's: "this output has images of torch 2.12.1, this run has …".

    Args:
        run_ids: of the runs that generated the output's images; none if it has no images of this model.

    Returns:
        None if all versions are the same. Packages whose version is unknown on either side are left out.
    """
    if not run_ids:
        return None
    known, here = _known_versions(output, model_type, run_ids), pixel_versions()
    of_output, of_run = [], []
    for package in PIXEL_PACKAGES:
        others = {versions[package] for versions in known if package in versions} - {here[package], MISSING}
        if others and here[package] != MISSING:
            of_output.append(f"{package} {' and '.join(sorted(others))}")
            of_run.append(f"{package} {here[package]}")
    if not of_output:
        return None
    return f"this output has images of {', '.join(of_output)}, this run has {', '.join(of_run)}"


def _known_versions(output: Output, model_type: str, run_ids: Collection[str]) -> list[dict[str, str]]:
    """The sets of versions of a model's parts; where a part has none, those in the records of these runs too."""
    versions = _versions_of_parts(output, model_type)
    if {} in versions:
        versions += [record.get("versions", {}) for record in runs.read_all(output) if record["run_id"] in run_ids]
    return versions


@retry_if_compacted
def _versions_of_parts(output: Output, model_type: str) -> list[dict[str, str]]:
    return Partition.open(output, model_type).versions
