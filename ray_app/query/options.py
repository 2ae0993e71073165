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
    """Ask an output's index with SQL (DuckDB's): the views are images, the newest row of each, features and runs.

    Nothing can be changed by it, and no other file be read. A damaged part is named on stderr; its rows don't count.

    Example: proxyqueue query --output_base_path out "SELECT step, count(*) FROM images GROUP BY ALL ORDER BY ALL"

    Exit codes: 0 answered, 2 refused (SQL that can't be run too), 130 interrupted.
    """

    sql: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SQL")] = None
    """One SELECT; see the columns with --schema."""
    preset: Literal["steps", "failures", "timing", "duplicates", "shared_references"] | None = None
    """Instead of SQL; shared_references are those of several queries, duplicates are slots that share a denoise."""
    schema: bool = False
    """Print the columns of the views with types and meaning, and stop."""
    format: Literal["table", "csv", "json", "parquet"] | None = None
    """Default by the ending of --output, else a table, of which the terminal gets the first 100 rows."""
    output: str | None = None
    """File to write instead of the terminal; there whole or not at all."""

    def check_flags(self) -> None:
        """Raise Refused unless exactly one thing is asked."""
        super().check_flags()
        questions = [self.sql is not None, self.preset is not None, self.schema]
        if sum(questions) != 1:
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
