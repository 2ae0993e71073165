"""`python -m ray_app`: the same as `proxyqueue`."""

import sys

from ray_app.cli import main

sys.exit(main())
