"""Metrics of runs: one catalogue, one scrape address a run. Training goes on where it fails."""
