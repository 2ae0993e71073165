"""`python -m tests.support.paced generate …`: the command, with workers of a steady pace and without a model."""

import functools
import sys

from ray_app import cli
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from tests.support.synthetic import PacedWorker

if __name__ == "__main__":
    cli.COMMANDS["generate"] = (Generate, functools.partial(generate, worker=PacedWorker))
    sys.exit(cli.main())
