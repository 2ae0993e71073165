"""`python -m jobs.generate …flags`: what a submitted Ray job runs; the same as `proxyqueue generate …flags`."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
