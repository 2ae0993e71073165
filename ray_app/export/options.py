"""The flags of `export`.
Knows names, defaults and bounds; nothing of files."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ray_app.arguments import Within
from ray_app.errors import InputRefused
from ray_app.export import FORMATS
from ray_app.files import whole_folder
from ray_app.flags import (
    ClusterFlags,
    FamilyFlags,
    OutputFlags,
    SnapshotFlags,
    StepFlags,
)
from ray_app.output.layout import why_not_plain

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


@dataclasses.dataclass(frozen=True)
class Export(ClusterFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Export images to formats that other tools read; images whose file is missing are left out.

    imagefolder: metadata.parquet in each step's folder, for datasets.load_dataset("imagefolder", data_dir=STEP_FOLDER).
    trajectories: Parquet, one row per slot, one image column per step. webdataset: tar shards, written by Ray Data.
    ipcir: check that retrieval scripts read the tree correctly; --by_query also writes trees for second queries.
    npz: the caches of image and text features that retrieval scripts read, from the vectors of `features`.

    Example: proxyqueue export --format trajectories --output_base_path out --export_path trajectories

    Exit codes: 0 written, or no problems; 1 ipcir found problems, 2 refused, 130 interrupted.
    """

    _: dataclasses.KW_ONLY
    format: FormatName
    """What for."""
    export_path: str | None = None
    """Folder to write to, new or empty. imagefolder writes into OUTPUT itself, ipcir only with --by_query."""
    by_query: bool = False
    """ipcir: where queries share a reference, write a complete tree with the second query's images (and another tree
    for a third query): retrieval scripts need these trees to score such queries."""
    shard_images: Annotated[int, Within(1, 1_000_000)] = 1000
    """webdataset: images per tar file; trajectories: rows per Parquet file."""

    encoder: str | None = None
    """npz: whose vectors, as in features: a hub id, a local folder, L or G."""
    preprocessing: Literal["targetpad", "model"] = "targetpad"
    """npz: how images were prepared, as in features."""
    json_file: str | None = None
    """npz: annotations whose prompts' vectors go into aug_features; all prompts of a query."""
    prompt_field: str = "multi_gpt-3.5_opt"
    """npz: field of the annotations that holds a query's list of prompts."""
    dataset: str = "circo_test"
    """npz: name of the file with the vectors of all images that are not the output's own, the gallery."""

    def check_flags(self) -> None:
        """Raise Refused for flags that don't go together."""
        super().check_flags()
        if (self.format == "npz") != (self.encoder is not None):
            raise InputRefused("--encoder: goes with --format npz, which needs it", flag="encoder")
        if why := why_not_plain(self.dataset):
            raise InputRefused(f"--dataset {self.dataset!r}: {why}; it must be a plain name", flag="dataset")
        if self.by_query and self.format != "ipcir":
            raise InputRefused("--by_query: requires --format ipcir", flag="by_query")

    def new_folder(self) -> contextlib.AbstractContextManager[Path]:
        """A temporary folder to write to, renamed to --export_path at the end.

        Raises:
            Refused: the path exists, or it can't be written.
        """
        path = str(self.export_path)
        if "://" in path:
            raise InputRefused(f"--export_path {path}: must be a local or mounted folder", flag="export_path")
        return whole_folder(Path(path).expanduser().absolute(), "--export_path")
