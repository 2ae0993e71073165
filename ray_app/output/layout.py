"""Every name and path under OUTPUT, in one place. Paths are relative to it, with forward slashes."""

import fnmatch
import re
import unicodedata
from typing import NamedTuple

from actors.families import FAMILIES

STAGING = ".staging"
QUARANTINE = ".set_aside"
"""Files moved out of the tree, each under the path that it had; hidden, so that no reader's pattern matches them."""
RUNS = "runs"
INDEX = "index"
COMBINED = "combined"
FEATURES = "features"
GALLERY = "gallery"
CONVERGENCE = "convergence"
CONVERGENCE_TABLE = f"{CONVERGENCE}/convergence.parquet"
CONVERGENCE_PLOT = f"{CONVERGENCE}/convergence.png"
FEATURES = "features"
EVALUATION = "evaluation"
EVALUATION_TABLE = f"{EVALUATION}/evaluation.parquet"
EVALUATION_PAGE = f"{EVALUATION}/index.html"
EVALUATION_PLOTS = {"step": f"{EVALUATION}/score_by_step.png", "weight": f"{EVALUATION}/score_by_weight.png"}
EVALUATION_ANSWER = f"{EVALUATION}/answer.png"
"""What `demo` adds: all models in one plot."""
SUBMISSIONS = f"{EVALUATION}/submissions"
THUMBNAILS = "thumbnails"
METADATA = "metadata.parquet"
"""What `export --format imagefolder` writes into a step's folder: each image's row, for the datasets library."""
FEATURE_CACHES = ("aug_features_*.npz", "source_features_*.npz", METADATA)
"""Files that retrieval scripts cache alongside the images, and METADATA; stale once an image is written or removed."""

MAX_NAME_BYTES = 200

_STEP_FOLDER = re.compile(r"proxy_images_([a-z0-9]+)_(x0_)?step([1-9][0-9]*)")
_IMAGE = re.compile(rf"{COMBINED}(_query[0-9]+)?/combined_.+_[0-9]+\.(jpg|png|webp)")
_PART = re.compile(rf"{INDEX}/model=([a-z0-9]+)/part-[^/]+\.parquet")
_FEATURES = re.compile(rf"{FEATURES}/encoder=[^/]+/part-[^/]+\.parquet")
_GALLERY = re.compile(r"index\.html|page[0-9]+\.html|queries\.js|gallery\.(css|js)")
_EVALUATION = re.compile(
    rf"{EVALUATION}/(evaluation\.parquet|index\.html|(answer|score_by_(step|weight))\.png|submissions/[^/]+\.json)"
)
_RUN = re.compile(rf"{RUNS}/[^/.][^/]*\.json")


class StepFolder(NamedTuple):
    """A step's folder, read back from its name."""

    name: str
    model_type: str
    snapshot: str
    step: int


def model_types(only: str | None) -> list[str]:
    """All families, or only this one."""
    return [name for name in FAMILIES if only in (None, name)]


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


def parse_step_folder(name: str) -> StepFolder | None:
    """What a name that `step_folder` made stands for; None for other names."""
    match = _STEP_FOLDER.fullmatch(name)
    if match is None or match[1] not in FAMILIES:
        return None
    snapshot = "x0" if match[2] else "xt"
    return StepFolder(name, match[1], snapshot, int(match[3]))


def query_folder(query_id: int, owns_reference: bool) -> str:
    """`combined` for the first query of a reference, a folder of its own for a later one that shares it."""
    return COMBINED if owns_reference else f"{COMBINED}_query{query_id}"


def image_file(folder: str, reference_img_id: str, k: int, image_format: str) -> str:
    """A slot's file within every step folder: `combined/combined_281438_0.jpg`."""
    return f"{folder}/combined_{reference_img_id}_{k}.{image_format}"


def is_image_file(file: str) -> bool:
    """Whether a path within a step's folder is one that `image_file` makes."""
    return _IMAGE.fullmatch(file) is not None


def is_clutter(path: str) -> bool:
    """Whether an operating system makes such files by itself: hidden ones, and thumbnails of Windows."""
    name = path.rsplit("/", 1)[-1]
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def is_feature_cache(file: str) -> bool:
    """Whether a file was made from the images in its folder, by its name."""
    name = file.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in FEATURE_CACHES)


def index_folder(model_type: str) -> str:
    """The model's hive partition of the index."""
    return f"{INDEX}/model={model_type}"


def index_part(model_type: str, run_id: str, sequence: int) -> str:
    """A part's path; the run's id in it keeps two runs from ever writing the same name."""
    return f"{index_folder(model_type)}/part-{run_id}-{sequence:06d}.parquet"


def is_index_part(path: str) -> bool:
    """Whether a path under OUTPUT is one that `index_part` makes."""
    match = _PART.fullmatch(path)
    return match is not None and match[1] in FAMILIES


def features_folder(encoder: str) -> str:
    """The vectors of an encoder, by its safe name: a hive partition."""
    return f"{FEATURES}/encoder={encoder}"


def submission_file(model_type: str, snapshot: str, step: int | None, method: str, weight: float | None) -> str:
    """A ranking for an evaluation server: `evaluation/submissions/sdxl_xt_step4_text+proxy_w0.5.json`."""
    step_part = "" if step is None else f"_step{step}"
    weight_part = "" if weight is None else f"_w{weight:g}"
    return f"{SUBMISSIONS}/{model_type}_{snapshot}{step_part}_{method}{weight_part}.json"


def is_evaluation_file(path: str) -> bool:
    """Whether a path under OUTPUT is one that `evaluate` writes."""
    return _EVALUATION.fullmatch(path) is not None


def features_part(encoder: str, run_id: str, sequence: int) -> str:
    """A part's path; as `index_part`."""
    return f"{features_folder(encoder)}/part-{run_id}-{sequence:06d}.parquet"


def is_features_part(path: str) -> bool:
    """Whether a path under OUTPUT is one that `features_part` makes."""
    return _FEATURES.fullmatch(path) is not None


def gallery_page(number: int) -> str:
    """A page's file within the gallery's folder, from 1."""
    return "index.html" if number == 1 else f"page{number}.html"


def thumbnail(path: str) -> str:
    """An image's small copy within the gallery's folder: under the image's own path, always a jpg."""
    return f"{THUMBNAILS}/{path.rsplit('.', 1)[0]}.jpg"


def is_gallery_file(file: str) -> bool:
    """Whether a path within the gallery's folder is one that `gallery` writes."""
    top, _, rest = file.partition("/")
    if top != THUMBNAILS:
        return _GALLERY.fullmatch(file) is not None
    folder, _, name = rest.partition("/")
    return parse_step_folder(folder) is not None and is_image_file(name)


def run_file(run_id: str) -> str:
    """A run's record."""
    return f"{RUNS}/{run_id}.json"


def is_run_file(path: str) -> bool:
    """Whether a path under OUTPUT is one that `run_file` makes."""
    return _RUN.fullmatch(path) is not None
