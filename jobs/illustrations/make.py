"""`python -m jobs.illustrations.make`: make the illustrations of README and docs again, and record from what.
Knows each one's sources; a test fails when one of them has changed since."""

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from jobs.illustrations import grids, record, screens
from ray_app.arguments import Options
from ray_app.cli import run_module
from ray_app.errors import OK, InputRefused

README_PROMPTS = ("A panda sitting on a sofa.", "A fox on a sofa by the window.")
TINY = ("actors/tiny_sdxl", "actors/tiny_flux")
SAMPLE_OUTPUT = (*TINY, "ray_app/sample.json", "jobs/illustrations/screens.py")


@dataclasses.dataclass(frozen=True)
class Illustration:
    """How a file is made, and the files and folders that decide how it looks."""

    make: Callable[[Path], object]
    sources: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Make(Options):
    """Make the illustrations of README and docs, and record what they were made from.

    Needs: apt-get install chromium chromium-driver && pip install -e '.[test]'
    """

    names: tuple[str, ...] = ()
    """Only these files of .github; default all that this command makes."""


def make(options: Make) -> int:
    """Make the illustrations; the exit code.

    Raises:
        InputRefused: an unknown name, no browser.
    """
    with tempfile.TemporaryDirectory() as folder:
        illustrations = all_illustrations(Path(folder))
        for name in options.names:
            if name not in illustrations:
                raise InputRefused(f"--names {name}: not one of {', '.join(illustrations)}", flag="names")
        for name in options.names or illustrations:
            one = illustrations[name]
            one.make(record.FOLDER / name)
            record.write(name, one.sources)
            print(f"{record.FOLDER / name}", flush=True)
    return OK


def all_illustrations(folder: Path) -> dict[str, Illustration]:
    """By name of the file in .github. Those that show an output share one, generated in `folder` when it is needed."""
    sample = functools.cache(lambda: screens.SampleOutput(folder))
    grid_code = "jobs/illustrations/grids.py"
    return {
        "proxies.png": Illustration(lambda file: grids.overview(file, README_PROMPTS), (*TINY, grid_code)),
        "demo.png": Illustration(
            lambda file: grids.families(file, sample_prompts()), (*TINY, "ray_app/sample.json", grid_code)
        ),
        "status.svg": Illustration(
            lambda file: screens.status(file, sample()),
            (*SAMPLE_OUTPUT, "ray_app/query/status.py", "ray_app/text_table.py"),
        ),
        "gallery.png": Illustration(
            lambda file: screens.gallery(file, sample()),
            (*SAMPLE_OUTPUT, "ray_app/gallery", "ray_app/page_templates.py"),
        ),
        "convergence.png": Illustration(
            lambda file: screens.convergence(file, sample()),
            (*SAMPLE_OUTPUT, "ray_app/evaluation/convergence.py", "ray_app/evaluation/convergence_plot.py"),
        ),
    }


def sample_prompts() -> list[str]:
    """The first prompt of each of the demo's queries."""
    return [query["multi_gpt-3.5_opt"][0] for query in json.loads(screens.SAMPLE.read_text())]


if __name__ == "__main__":
    sys.exit(run_module("jobs.illustrations.make", Make, make))
