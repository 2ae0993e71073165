"""`python -m jobs.submit …flags`: the same as `proxyqueue submit …flags`, from a clone that is not installed."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
