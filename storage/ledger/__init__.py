"""What is done: commits, leases, manifest, drops; imports `storage.fs` and `storage.codecs`."""
