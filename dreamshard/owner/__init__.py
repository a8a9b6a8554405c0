"""Who owns what: a run its folder, a process the file that it is writing."""
