"""Teachers, frozen networks with features to record; imports the ground and `storage.schema`."""
