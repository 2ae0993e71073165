"""The flags of the commands that answer questions: query, status.
Knows names, defaults and bounds; nothing of files."""

import dataclasses
from typing import Annotated, Literal

import tyro

from ray_app.arguments import Seconds
from ray_app.errors import InputRefused
from ray_app.flags import (
    AnnotationFlags,
    FamilyFlags,
    OutputFlags,
    ReportFlags,
    SnapshotFlags,
    StepFlags,
)

PRESETS = ("steps", "failures", "timing", "duplicates", "shared_references")


@dataclasses.dataclass(frozen=True)
class Query(OutputFlags):
    """Query an output's index with SQL (DuckDB). Views: images (newest row of each), runs, features and evaluation.

    Read-only; no other files can be read. Damaged parts are named on stderr and their rows are ignored.

    Example: proxyqueue query --output_base_path out "SELECT step, count(*) FROM images GROUP BY ALL ORDER BY ALL"

    Exit codes: 0 answered, 2 refused (including SQL that can't be run), 130 interrupted.
    """

    sql: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SQL")] = None
    """One SELECT; see the columns with --schema."""
    preset: Literal["steps", "failures", "timing", "duplicates", "shared_references"] | None = None
    """A prepared query. shared_references: used by several queries; duplicates: slots that share a denoising pass."""
    schema: bool = False
    """Print the columns of the views with types and meaning, and stop."""
    format: Literal["table", "csv", "json", "parquet"] | None = None
    """Default by --output's extension, else a table, of which the terminal shows the first 100 rows."""
    output: str | None = None
    """File to write to instead of the terminal; written atomically."""

    def check_flags(self) -> None:
        """Raise Refused unless exactly one query is given."""
        super().check_flags()
        questions = [self.sql is not None, self.preset is not None, self.schema]
        if sum(questions) != 1:
            raise InputRefused("query: give exactly one of SQL, --preset and --schema (see proxyqueue query --help)")
        if self.sql is not None and not self.sql.strip():
            raise InputRefused("query: the SQL is empty")
        if self.format == "parquet" and self.output is None:
            raise InputRefused("--format parquet: name a file with --output", flag="format")


@dataclasses.dataclass(frozen=True)
class Status(ReportFlags, SnapshotFlags, StepFlags, AnnotationFlags, FamilyFlags, OutputFlags):
    """Show progress: images done, failed and missing, the runs, and the time that active runs have left.

    Requested images ("asked" in the JSON) are those of all run records, or of --json_file. Done: the index says ok and
    the file has the recorded size. Missing: neither done nor failed.

    Example: proxyqueue status --output_base_path out --watch

    Exit codes: 0 shown, whatever the state; 2 refused, 130 interrupted (Ctrl-C ends --watch).
    """

    index_only: bool = False
    """Trust the index and list no files: for millions of images."""
    watch: bool = False
    """Show it again every --seconds until Ctrl-C."""
    seconds: Annotated[float, Seconds(86_400, ", and at most a day")] = 5.0
    """Interval of --watch."""
