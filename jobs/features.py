"""`python -m jobs.features …flags`: the same as `proxyqueue features …flags`, as a job's entry point."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["features", *sys.argv[1:]]))
