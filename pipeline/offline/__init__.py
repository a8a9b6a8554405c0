"""Units made into committed shards: driver, workers, actor; imports `request`."""
