"""Grafana's boards as code: panels, queries, one module a board. Writes JSON, reads nothing."""
