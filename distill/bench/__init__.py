"""What tasks share: representations, batches, read-outs; imports `students` and `training`."""
