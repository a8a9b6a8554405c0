"""Units as bytes on disk, Zarr and tar; imports `storage.ledger`, `rows`, `codecs` and `fs`."""
