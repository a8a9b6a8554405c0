"""Copy rows out of chunk files; imports `storage.codecs`."""
