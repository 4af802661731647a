"""Benchmarks: streams of data, from tensors in memory or from data-loader workers."""
