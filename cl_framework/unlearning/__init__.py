"""How unlearning is recorded, measured and checked."""
