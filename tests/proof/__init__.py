"""The long proofs: kills, chaos, alerts. `make proof`; slow tests run their short versions."""
