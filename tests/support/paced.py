"""`python -m tests.support.paced COMMAND …`: generate or features, with workers of a steady pace, without a model."""

import functools
import sys

from ray_app import cli
from ray_app.features.features import features
from ray_app.features.options import Features
from ray_app.generation.generate import generate
from ray_app.generation.options import Generate
from tests.support.encoders import PacedFeatureWorker
from tests.support.synthetic import PacedWorker

if __name__ == "__main__":
    cli.COMMANDS["generate"] = (Generate, functools.partial(generate, worker=PacedWorker))
    cli.COMMANDS["features"] = (Features, functools.partial(features, worker=PacedFeatureWorker))
    sys.exit(cli.main())
