"""Campaigns of trials: driver.py runs one on Ray Tune, study.py (Optuna) decides what is tried."""
