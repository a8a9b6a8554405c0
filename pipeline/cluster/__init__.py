"""Ray's cluster, the processes on it, what becomes of their work; imports the ground only."""
