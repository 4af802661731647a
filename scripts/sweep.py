"""`python scripts/sweep.py EXPERIMENT [key=a,b seed=0..4 ...] [--jobs N]` is `clu sweep`."""

import sys

from cl_framework.cli import main

sys.exit(main(["sweep", *sys.argv[1:]]))
