"""The training stream: positions, ring, prefetch, reader; imports `storage.rows`."""
