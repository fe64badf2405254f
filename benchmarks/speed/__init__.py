"""Benchmarks of `python -m benchmarks`, each a `measure` that gives its rows."""
