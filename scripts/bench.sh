#!/usr/bin/env bash
# Cost per optimizer step beside a bare PyTorch loop and Avalanche, on one thread.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment ""
OMP_NUM_THREADS=1 clu bench "$@"
