"""`python -m tests.paced generate …`: the command, with workers that draw at a steady pace and without a model."""

import functools
import sys

from ray_app import cli
from ray_app.generate import generate
from ray_app.options import Generate
from tests.synthetic import PacedWorker

if __name__ == "__main__":
    cli.VERBS["generate"] = (Generate, functools.partial(generate, worker=PacedWorker))
    sys.exit(cli.main())
