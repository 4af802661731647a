"""Models with heads sized for all classes of a benchmark."""
