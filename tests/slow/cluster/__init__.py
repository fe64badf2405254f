"""Tests that join one running Ray cluster, which their conftest starts."""
