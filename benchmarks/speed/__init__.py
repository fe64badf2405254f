"""Benchmarks of `python -m benchmarks`: functions of the benchmarks' names that give their rows."""
