"""Campaigns: Ray Tune runs the trials, an Optuna study keeps the truth about them."""
