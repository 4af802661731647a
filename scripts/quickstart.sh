#!/usr/bin/env bash
# From nothing to a first comparison: an environment, the package, and runs on data that needs no download.
# `quickstart.sh text` does the same for text; further arguments are overrides for every run.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

if [ "${1:-}" = text ]; then
  shift
  prepare_environment "[text]"
  for text in docstrings topics; do
    clu sweep "experiments/${text}_finetune.yaml" "experiments/${text}_er.yaml" "$@" --jobs 2
  done
  exit
fi
prepare_environment ""

for method in finetune er derpp; do
  clu run "experiments/digits_$method.yaml" "$@"
done
clu report runs/digits_finetune runs/digits_er runs/digits_derpp
echo "Next: clu show experiments/digits_er.yaml, or clu run experiments/digits_er.yaml seed=1 strategies.er.capacity=50"
echo "To learn and unlearn: clu run experiments/digits_unlearn.yaml, then clu verify runs/digits_unlearn/*-s0"
