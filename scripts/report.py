"""`python scripts/report.py RUN_DIR... [--out FILE]` is `clu report`."""

import sys

from cl_framework.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
