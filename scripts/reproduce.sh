#!/usr/bin/env bash
# All published cells over three seeds, resumable; rewrites the table in README and the committed record it is made from.
# MNIST lies in data/ (or CL_DATA), or is fetched: scripts/reproduce.sh data.download=true
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment ""
clu reproduce --seeds 0..2 --jobs "${CL_JOBS:-2}" --table README.md --record experiments/results/papers.csv "$@"
