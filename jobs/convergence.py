"""`python -m jobs.convergence …flags`: the same as `proxyqueue convergence …flags`, as a job's entry point."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["convergence", *sys.argv[1:]]))
