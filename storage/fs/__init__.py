"""Every operation on files, local or remote; imports `storage.schema` at most."""
