#!/usr/bin/env bash
# From nothing to a first comparison: an environment, the package, and runs on data that needs no download.
# `quickstart.sh text` does the same for text; further arguments are overrides for every run.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

if [ "${1:-}" = text ]; then
  shift
  prepare_environment "[text]"
  replayed="er trains on replayed rows beside the new ones in each step: about twice the rows (\"new samples\", \"replayed\")."
  clu sweep experiments/docstrings_finetune.yaml experiments/docstrings_er.yaml "$@" --jobs 2
  echo "\"forgetting\" is the points of accuracy that earlier tasks have lost: lower is better, and average accuracy higher. $replayed"
  clu sweep experiments/topics_finetune.yaml experiments/topics_er.yaml "$@" --jobs 2
  echo "\"loss rise\" is forgetting in nats a token: lower is better, as is \"loss, old tasks\". $replayed"
  echo "Next: clu show experiments/topics_er.yaml, or clu run experiments/docstrings_er.yaml seed=1 strategies.er.capacity=50"
  echo "To learn and unlearn: clu run experiments/docstrings_er.yaml strategies.rewind={} stream=\"L0 L1 U0 L2\""
  exit
fi
prepare_environment ""

for method in finetune er derpp; do
  clu run "experiments/digits_$method.yaml" "$@"
done
clu report runs/digits_finetune runs/digits_er runs/digits_derpp
echo "Next: clu show experiments/digits_er.yaml, or clu run experiments/digits_er.yaml seed=1 strategies.er.capacity=50"
echo "To learn and unlearn: clu run experiments/digits_unlearn.yaml, then clu verify runs/digits_unlearn/*-s0"
