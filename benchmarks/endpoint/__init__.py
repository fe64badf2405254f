"""The sampling endpoint beside its rivals: `python -m benchmarks.endpoint`."""
