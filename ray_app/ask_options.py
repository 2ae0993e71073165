"""The flags of the verbs that ask and show: query, status, gallery, export, convergence.
Knows names and defaults; nothing of files."""

import dataclasses
from typing import Annotated, Literal

import tyro

from ray_app.arguments import Seconds, Within
from ray_app.errors import InputRefused
from ray_app.flags import (
    AnnotationFlags,
    ClusterFlags,
    FamilyFlags,
    OutputFlags,
    QueryFlags,
    ReportFlags,
    SnapshotFlags,
    StepFlags,
)

PRESETS = ("steps", "failures", "timing", "duplicates", "shared_references")


@dataclasses.dataclass(frozen=True)
class Query(OutputFlags):
    """Ask an output's index with SQL (DuckDB's): the views are images, the newest row of each, and runs.

    Nothing can be changed by it, and no other file be read. A damaged part is named on stderr; its rows don't count.

    Example: proxyqueue query --output_base_path out "SELECT step, count(*) FROM images GROUP BY ALL ORDER BY ALL"

    Exit codes: 0 answered, 2 refused (SQL that can't be run too), 130 interrupted.
    """

    sql: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SQL")] = None
    """One SELECT; see the columns with --schema."""
    preset: Literal["steps", "failures", "timing", "duplicates", "shared_references"] | None = None
    """Instead of SQL; shared_references are those of several queries, duplicates are slots that share a denoise."""
    schema: bool = False
    """Print the columns of both views with types and meaning, and stop."""
    format: Literal["table", "csv", "json", "parquet"] | None = None
    """Default by the ending of --output, else a table, of which the terminal gets the first 100 rows."""
    output: str | None = None
    """File to write instead of the terminal; there whole or not at all."""

    def check_flags(self) -> None:
        """Raise Refused unless exactly one thing is asked."""
        super().check_flags()
        asked = [self.sql is not None, self.preset is not None, self.schema]
        if sum(asked) != 1:
            raise InputRefused("query: ask one thing: SQL, --preset or --schema (see proxyqueue query --help)")
        if self.sql is not None and not self.sql.strip():
            raise InputRefused("query: the SQL is empty")
        if self.format == "parquet" and self.output is None:
            raise InputRefused("--format parquet: name a file with --output", flag="format")


@dataclasses.dataclass(frozen=True)
class Status(ReportFlags, SnapshotFlags, StepFlags, AnnotationFlags, FamilyFlags, OutputFlags):
    """Say what is there of what was asked, the runs, and when one that is going on will be done.

    Asked is what all runs' records together say, or the annotations of --json_file. Done is what the index says is ok
    and whose file has that size; missing is what neither is done nor failed.

    Example: proxyqueue status --output_base_path out --watch

    Exit codes: 0 shown, whatever it is; 2 refused, 130 interrupted (Ctrl-C ends --watch).
    """

    index_only: bool = False
    """Believe the index and list no files: for millions of images."""
    watch: bool = False
    """Show it anew every --seconds until Ctrl-C."""
    seconds: Annotated[float, Seconds(86_400, ", and at most a day")] = 5.0
    """Between two looks of --watch."""


@dataclasses.dataclass(frozen=True)
class Gallery(QueryFlags, FamilyFlags, OutputFlags):
    """Write a static page to look at: a row a slot, a column a step, reference, caption and prompt beside them.

    Opens without a server or a network. The folder holds small copies of its own: zip it and send it.

    Example: proxyqueue gallery --output_base_path out --json_file test.json --limit 100

    Exit codes: 0 written, 2 refused, 130 interrupted.
    """

    gallery_path: str | None = None
    """Folder of the pages; default OUTPUT/gallery."""
    json_file: str | None = None
    """Annotations with the captions; default those of the last run, if they are there still."""
    thumbnails: Annotated[int, Within(16, 4096, unless=0, meaning=", or 0 for none")] = 256
    """Longer side of the copies in pixels; 0 makes none and shows the images where they are, in full."""
    contact_sheet: str | None = None
    """Write one PNG for papers and slides instead: --query_ids or --limit say of what."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value makes no sense."""
        super().check_flags()
        if self.contact_sheet is not None and not self.contact_sheet.lower().endswith(".png"):
            raise InputRefused(f"--contact_sheet {self.contact_sheet}: must end with .png", flag="contact_sheet")


@dataclasses.dataclass(frozen=True)
class Export(ClusterFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Hand an output on in the form that other programs read; only images whose file is there.

    imagefolder: metadata.parquet beside each combined/, for datasets.load_dataset("imagefolder", data_dir=STEP_FOLDER).
    trajectories: Parquet, one row a slot, one image column a step. webdataset: tar shards, written by Ray Data.
    ipcir: check that retrieval scripts read the tree right; with --by_query write trees for second queries too.

    Example: proxyqueue export --format trajectories --output_base_path out --export_path trajectories

    Exit codes: 0 written, or nothing wrong; 1 ipcir found problems, 2 refused, 130 interrupted.
    """

    _: dataclasses.KW_ONLY
    format: Literal["imagefolder", "trajectories", "webdataset", "ipcir"]
    """What for."""
    export_path: str | None = None
    """Folder to write to, new or empty. imagefolder writes into OUTPUT itself, ipcir only with --by_query."""
    by_query: bool = False
    """ipcir: where queries share a reference, a complete tree in which the second query's images take the first's place
    (and a third's in another): what retrieval scripts need to score them."""
    shard_images: Annotated[int, Within(1, 1_000_000)] = 1000
    """webdataset: images of a tar file; trajectories: rows of a Parquet file."""

    def check_flags(self) -> None:
        """Raise Refused for flags that don't go together."""
        super().check_flags()
        writes = self.format in ("trajectories", "webdataset") or self.by_query
        if writes and self.export_path is None:
            raise InputRefused(f"--export_path: name the folder that --format {self.format} writes", flag="export_path")
        if not writes and self.export_path is not None:
            raise InputRefused(f"--export_path: --format {self.format} takes none", flag="export_path")
        if self.by_query and self.format != "ipcir":
            raise InputRefused("--by_query: goes with --format ipcir", flag="by_query")


@dataclasses.dataclass(frozen=True)
class Convergence(ClusterFlags, SnapshotFlags, StepFlags, FamilyFlags, OutputFlags):
    """Measure how near each step's image is to the last step's: PSNR and SSIM (scikit-image), a row a slot and step.

    Writes OUTPUT/convergence/convergence.parquet and a plot beside it, and prints the medians. Images of the same slot
    and denoise are compared, by tasks of Ray Data; slots whose last step failed or is missing don't count.
    The last of --steps is the one to compare with.

    Example: proxyqueue convergence --output_base_path out --model_type sdxl

    Exit codes: 0 measured, 1 some images could not be compared (they are named), 2 refused, 130 interrupted.
    """

    def check_flags(self) -> None:
        """Raise Refused for steps that can't be."""
        super().check_flags()
        if len(set(self.steps)) == 1:
            raise InputRefused(
                f"--steps {self.steps[0]}: name at least two, the last is what others are compared with", flag="steps"
            )
