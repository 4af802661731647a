#!/usr/bin/env bash
# All published MNIST cells over three seeds, resumable; rewrites the table in README and the committed record it is made from.
# MNIST lies in data/ (or CL_DATA), or is fetched: scripts/reproduce.sh data.download=true
# The CIFAR cells want an accelerator: clu reproduce seq_cifar10_er_200 … --table experiments/papers/README.md
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
prepare_environment ""
clu reproduce $(basename -s .yaml experiments/papers/*_mnist_*.yaml) --seeds 0..2 --jobs "${CL_JOBS:-2}" --table README.md --record experiments/results/papers.csv "$@"
