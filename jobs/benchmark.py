"""`python -m jobs.benchmark …flags`: the same as `proxyqueue bench …flags`, with `scale` first as `bench_scale`."""

import sys

from ray_app.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    scale = arguments[:1] == ["scale"]
    sys.exit(main(["bench_scale", *arguments[1:]] if scale else ["bench", *arguments]))
