"""Every name and path under OUTPUT, in one place. Paths are relative to it, with forward slashes."""

import unicodedata

STAGING = ".staging"
RUNS = "runs"
INDEX = "index"
COMBINED = "combined"
FEATURE_CACHES = ("aug_features_*.npz", "source_features_*.npz")
"""What retrieval scripts cache beside the images; stale as soon as an image is written or removed."""

MAX_NAME_BYTES = 200


def why_not_plain(name: str) -> str | None:
    """Why an id can't be part of a file name, or None if it can. Nothing may ever be written outside OUTPUT."""
    if not name:
        return "is empty"
    if any(character in name for character in "/\\"):
        return "has a slash"
    if name.startswith("."):
        return "begins with a dot"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "has a control character"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def step_folder(model_type: str, snapshot: str, step: int) -> str:
    """`proxy_images_sdxl_step4`, or `proxy_images_sdxl_x0_step4` for x0 snapshots."""
    kind = "" if snapshot == "xt" else f"{snapshot}_"
    return f"proxy_images_{model_type}_{kind}step{step}"


def query_folder(query_id: int, owns_reference: bool) -> str:
    """`combined` for the first query of a reference, a folder of its own for a later one that shares it."""
    return COMBINED if owns_reference else f"{COMBINED}_query{query_id}"


def image_file(folder: str, reference_img_id: str, k: int, image_format: str) -> str:
    """A slot's file within every step folder: `combined/combined_281438_0.jpg`."""
    return f"{folder}/combined_{reference_img_id}_{k}.{image_format}"


def index_folder(model_type: str) -> str:
    """The model's hive partition of the index."""
    return f"{INDEX}/model={model_type}"


def index_part(model_type: str, run_id: str, sequence: int) -> str:
    """A part's path; the run's id in it keeps two runs from ever writing the same name."""
    return f"{index_folder(model_type)}/part-{run_id}-{sequence:06d}.parquet"


def run_file(run_id: str) -> str:
    """A run's record."""
    return f"{RUNS}/{run_id}.json"
