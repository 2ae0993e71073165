"""What can be wrong with an output: its rows against its files, its folders against its rows, parts and staging.
Finds and names problems; repairs nothing and generates nothing."""

import collections
import dataclasses
import functools
import hashlib
import io
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image, UnidentifiedImageError

from ray_app.errors import one_line
from ray_app.features.parts import FeatureParts, encoders_of
from ray_app.index import runs
from ray_app.index.partition import Partition
from ray_app.index.rows import find_newest, is_of_capture
from ray_app.index.schema import KEY, SLOT_KEY
from ray_app.output import layout
from ray_app.output.output import Output

# its functions are made when it is imported: type checkers don't see them
pc: Any = pyarrow.compute


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of problem: what it means, and how it is repaired.

    Attributes:
        drops_row: the repair drops the image's row from the index.
        quarantines_file: it moves the file of a step's folder to OUTPUT/.set_aside.
        is_regenerated: the next `generate` generates the image.
    """

    meaning: str
    drops_row: bool = False
    quarantines_file: bool = False
    is_regenerated: bool = False


_damaged_file = functools.partial(Kind, drops_row=True, quarantines_file=True, is_regenerated=True)
UNREADABLE_PART = "unreadable part"
KINDS = {
    UNREADABLE_PART: Kind("a part of the index or of features that can't be read: its rows are lost"),
    "missing file": Kind("the index has the image, but its file does not exist", drops_row=True, is_regenerated=True),
    "wrong size": _damaged_file("the file has another size than its row says"),
    "wrong sha256": _damaged_file("the file has other bytes than its row says"),
    "unreadable file": Kind("the file exists, but the system can't read it"),
    "bad picture": _damaged_file("the file can't be decoded, has another width or height, or only one colour"),
    "failed image": Kind("the index says that generating it failed", is_regenerated=True),
    "missing slot": Kind("requested by the annotations, and not in the index", is_regenerated=True),
    "other slot": Kind("prompt, reference or number differ between the annotations and its row"),
    "uneven reference": Kind("a reference with more or fewer images than the others of the folder"),
    "stray file": Kind("a file in a step's folder that no ok row of the index has", quarantines_file=True),
    "stale cache": Kind("features cached before the folder's newest image was written"),
    "leftover": Kind("an unfinished file of a run that has ended"),
    "redrawn differently": Kind("regenerated from its row and recipe, the image has other bytes"),
    "not redrawn": Kind("its recipe is unknown, or regenerating it failed"),
}
"""Every kind of problem, in the order of the report."""

COLUMNS = (*KEY, "created_at", "reference_img_id", "k", "path", "status", "bytes", "sha256", "width", "height",
           "error_type", "error_message")  # fmt: skip
CHUNK = 1_000
"""Files passed to the threads at a time, so that few results wait in memory."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `row` is the number of its row in the model's `Partition`, where it has one."""

    kind: str
    name: str
    detail: str
    model_type: str | None = None
    row: int | None = None

    @property
    def is_(self) -> Kind:
        """What its kind means and how it is repaired."""
        return KINDS[self.kind]


class Model:
    """The checks of one model's images in an output.

    Args:
        partition: its parts.
        rows: all their rows with `COLUMNS`, and `prompt` where slots are to be checked.
        since: when the first of the runs that may be active began, in seconds since the epoch, or None: an image
            that was written since then without a row is not a stray file yet.
    """

    def __init__(self, output: Output, model_type: str, partition: Partition, rows: pa.Table, since: float | None):
        self.output, self.model_type, self.partition, self.all_rows = output, model_type, partition, rows
        self.since_ns = math.inf if since is None else since * 1e9
        self.newest = find_newest(rows)
        self.rows = rows.take(pa.array(self.newest))
        self.files = self.bytes = 0

    def indexed(self) -> list[tuple[str, int]]:
        """(snapshot, step) of every image of the index, sorted."""
        pairs = self.rows.group_by(["snapshot", "step"]).aggregate([]).to_pylist()
        captures = [(pair["snapshot"], pair["step"]) for pair in pairs]
        return sorted(captures, key=lambda capture: (capture[0] != "xt", capture[1]))

    def folders(self) -> list[tuple[str, int]]:
        """(snapshot, step) of the folders that the index or the tree has."""
        of_tree = [(folder.snapshot, folder.step) for folder in self.output.step_folders(self.model_type)]
        return list(dict.fromkeys([*self.indexed(), *of_tree]))

    def check_parts(self) -> Iterator[Problem]:
        """Parts that can't be read."""
        for name, reason in self.partition.damaged.items():
            yield Problem(UNREADABLE_PART, name, reason, self.model_type)

    def check_folder(
        self, snapshot: str, step: int, pool: ThreadPoolExecutor, deep: bool, add: Callable[[int], None]
    ) -> Iterator[Problem]:
        """A step's folder: each file of an ok row, failures, stray files and stale caches.

        Args:
            deep: decode the images too.
            add: called with numbers of images that were checked.
        """
        folder = layout.step_folder(self.model_type, snapshot, step)
        (places,) = np.nonzero(is_of_capture(self.rows, snapshot, step))
        rows, numbers = self.rows.take(pa.array(places)), self.newest[places]
        entries = (entry for entry in self.output.files(folder) if not layout.is_clutter(entry.name))
        files = {f"{folder}/{entry.name}": entry for entry in entries}
        is_ok = np.asarray(pc.equal(rows["status"], "ok"))
        yield from self._failures(rows.filter(pa.array(~is_ok)), numbers[~is_ok])
        rows, numbers = rows.filter(pa.array(is_ok)), numbers[is_ok]
        for start in range(0, rows.num_rows, CHUNK):
            chunk = rows.slice(start, CHUNK).to_pylist()
            verdicts = pool.map(lambda row: self._wrong(row, files, deep), chunk)
            for row, number, verdict in zip(chunk, numbers[start : start + CHUNK], verdicts, strict=True):
                if verdict is not None:
                    kind, detail = verdict
                    yield Problem(kind, row["path"], detail + _of(row), self.model_type, int(number))
            add(len(chunk))
        yield from self._folder_problems(folder, files, set(rows["path"].to_pylist()))

    def check_even(self, snapshot: str, step: int) -> Iterator[Problem]:
        """References of `combined` with another number of rows than most.

        Counts rows, not files: missing files, failed images and stray files are problems of their own.
        """
        folder = f"{layout.step_folder(self.model_type, snapshot, step)}/{layout.COMBINED}"
        rows = self.rows.filter(pc.starts_with(self.rows["path"], f"{folder}/"))
        counts = rows.group_by("reference_img_id").aggregate([([], "count_all")])
        references, numbers_of_images = counts["reference_img_id"].to_pylist(), counts["count_all"].to_pylist()
        frequency = collections.Counter(numbers_of_images)
        most_common = max(frequency, key=lambda count: (frequency[count], count), default=0)
        for reference, count in sorted(zip(references, numbers_of_images, strict=True)):
            if count != most_common:
                detail = f"{count} images in the index, most references have {most_common}"
                yield Problem("uneven reference", f"{folder}: {reference}", detail, self.model_type)

    def check_slots(self, slots: pa.Table) -> Iterator[Problem]:
        """Slots of the annotations that have no row, or another image's row, at a step that the index has."""
        compared = ("prompt", "reference_img_id", "k")
        suffix = "_of_row"
        requested = slots.select([*SLOT_KEY, *compared])
        for snapshot, step in self.indexed():
            folder = layout.step_folder(self.model_type, snapshot, step)
            is_of_step = pa.array(is_of_capture(self.rows, snapshot, step))
            rows = self.rows.filter(is_of_step).select([*SLOT_KEY, *compared, "status"])
            both = requested.join(rows, list(SLOT_KEY), right_suffix=suffix)
            both = both.sort_by([(name, "ascending") for name in SLOT_KEY])
            is_different = pc.is_null(both["status"])  # a slot without a row has no status
            for name in compared:
                # a null means no row, or one that proxyqueue did not write
                has_other_value = pc.not_equal(both[name], both[name + suffix]).fill_null(True)
                is_different = pc.or_(is_different, has_other_value)
            for slot in both.filter(is_different).to_pylist():
                where = f"{folder}: {_slot_name(slot)}"
                if slot["status"] is None:
                    yield Problem("missing slot", where, "no row in the index", self.model_type)
                    continue
                name = next(name for name in compared if slot[name] != slot[name + suffix])
                detail = f"{name} is {slot[name + suffix]!r} in the index and {slot[name]!r} in the annotations"
                yield Problem("other slot", where, detail, self.model_type)

    def _failures(self, rows: pa.Table, numbers: np.ndarray) -> Iterator[Problem]:
        for row, number in zip(rows.to_pylist(), numbers, strict=True):
            reason = f"{row['error_type']}: {row['error_message']}"
            yield Problem("failed image", row["path"], reason + _of(row), self.model_type, int(number))

    def _wrong(self, row: dict[str, Any], files: dict[str, Any], deep: bool) -> tuple[str, str] | None:
        """What is wrong with an ok row's file, as kind and detail; None if nothing is."""
        if row["path"] not in files or not files[row["path"]].is_file:
            return "missing file", "does not exist"
        if files[row["path"]].bytes != row["bytes"]:
            return "wrong size", f"{files[row['path']].bytes:,} bytes instead of {row['bytes'] or 0:,}"
        try:
            data = self.output.read(row["path"])
        except FileNotFoundError:
            return "missing file", "removed while it was checked"
        except OSError as error:
            return "unreadable file", self.output.failed(error) or one_line(error)
        digest = hashlib.sha256(data).hexdigest()
        if digest != row["sha256"]:
            return "wrong sha256", f"{digest[:12]}… instead of {str(row['sha256'])[:12]}…"
        if deep and (reason := _why_bad_image(data, row["width"], row["height"])):
            return "bad picture", reason
        return None

    def _folder_problems(self, folder: str, files: dict[str, Any], indexed: set[str]) -> Iterator[Problem]:
        self.files += len(files)
        self.bytes += sum(entry.bytes for entry in files.values())
        newest = max((files[path].mtime_ns for path in indexed & files.keys()), default=0)
        for path in sorted(files.keys() - indexed):
            is_image = layout.is_image_file(path.removeprefix(f"{folder}/"))
            if layout.is_feature_cache(path):
                if files[path].mtime_ns < newest:
                    yield Problem("stale cache", path, "older than the folder's newest image", self.model_type)
            elif not is_image or files[path].mtime_ns < self.since_ns:
                detail = "no ok row of the index" if is_image else "not an image that proxyqueue wrote"
                yield Problem("stray file", path, detail, self.model_type)


def check_features(output: Output) -> Iterator[Problem]:
    """Parts of features that can't be read; what a part says is not compared with the images."""
    for encoder in encoders_of(output):
        for name, reason in FeatureParts(output, encoder).find_damage().items():
            yield Problem(UNREADABLE_PART, name, reason)


def check_staging(output: Output) -> Iterator[Problem]:
    """Unfinished files of runs that are not active."""
    alive_prefixes = tuple(f"{record['run_id']}/" for record in runs.active_runs(output))
    for entry in output.files(layout.STAGING):
        if not entry.name.startswith(alive_prefixes) and not layout.is_clutter(entry.name):
            yield Problem("leftover", f"{layout.STAGING}/{entry.name}", "its run has ended")


def _of(row: dict[str, Any]) -> str:
    return f" ({_slot_name(row)})"


def _slot_name(row: dict[str, Any]) -> str:
    return f"query {row['query_id']}, prompt {row['prompt_index']}, image {row['image_index']}"


def _why_bad_image(data: bytes, width: int, height: int) -> str | None:
    """Why a file is not the image that its row describes, None if it is."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.size != (width, height):
                return f"{image.width} x {image.height} pixels instead of {width} x {height}"
            extremes = image.convert("RGB").getextrema()
    except UnidentifiedImageError:
        return "can't be decoded: not an image of a known format"
    except Exception as error:  # a damaged file can make Pillow raise nearly anything
        return f"can't be decoded: {one_line(error, 200)}"
    is_one_colour = all(low == high for low, high in extremes)  # type: ignore[misc]
    return "only one colour" if is_one_colour else None
