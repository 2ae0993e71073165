"""The flags of `gallery`.
Knows names, defaults and bounds; nothing of files."""

import dataclasses
from typing import Annotated

from ray_app.arguments import Within
from ray_app.errors import InputRefused
from ray_app.flags import (
    FamilyFlags,
    OutputFlags,
    QueryFlags,
)


@dataclasses.dataclass(frozen=True)
class Gallery(QueryFlags, FamilyFlags, OutputFlags):
    """Write static HTML pages: one row per slot, one column per step, with reference, caption and prompt.

    They open without a server or a network. The folder has its own thumbnails, so it can be zipped and sent.

    Example: proxyqueue gallery --output_base_path out --json_file test.json --limit 100

    Exit codes: 0 written, 2 refused, 130 interrupted.
    """

    gallery_path: str | None = None
    """Folder of the pages; default OUTPUT/gallery."""
    json_file: str | None = None
    """Annotations with the captions; default those of the last run, if that file still exists."""
    thumbnails: Annotated[int, Within(16, 4096, unless=0, meaning=", or 0 for none")] = 256
    """Longer side of the thumbnails in pixels; 0 makes none, and pages show the original images."""
    contact_sheet: str | None = None
    """Write one PNG for papers and slides instead; select its queries with --query_ids or --limit."""

    def check_flags(self) -> None:
        """Raise Refused for the first flag whose value is invalid."""
        super().check_flags()
        if self.contact_sheet is not None and not self.contact_sheet.lower().endswith(".png"):
            raise InputRefused(f"--contact_sheet {self.contact_sheet}: must end with .png", flag="contact_sheet")
