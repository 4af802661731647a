"""`python -m cl_framework` is `clu`."""

import sys

from cl_framework.cli import main

if __name__ == "__main__":
    sys.exit(main())
