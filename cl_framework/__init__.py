"""A continual-learning framework: models that learn and unlearn in sequence."""
