"""Pictures to Parquet shards to batches in one global order. Knows no run."""
