"""`python -m jobs.benchmark …flags`: the same as `proxyqueue bench …flags`, with `scale` first as `bench scale`."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
