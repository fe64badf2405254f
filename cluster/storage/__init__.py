"""Named blobs in a folder or in S3, and the lease that keeps a writer alone. Knows no run."""
