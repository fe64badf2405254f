"""Pairs of images: from files to Parquet shards, and from shards to batches."""
