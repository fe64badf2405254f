"""The sampling endpoint: HTTP, batching, keys, following a promoted model. Runs without Ray."""
