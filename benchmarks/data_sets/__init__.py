"""Data sets for comparisons besides the embedded drawings, made from packages one can install."""
