"""`python scripts/run.py EXPERIMENT [overrides]` is `clu run`."""

import sys

from cl_framework.cli import main

sys.exit(main(["run", *sys.argv[1:]]))
