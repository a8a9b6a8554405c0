"""Training batches from shards, stream or live teacher; imports `configs` and `losses`."""
