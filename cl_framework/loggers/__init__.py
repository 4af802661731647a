"""Where a run tells what it does: the console and Weights & Biases."""
