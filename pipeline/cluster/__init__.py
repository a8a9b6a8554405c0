"""Ray: join a cluster or start one, and count; imports the ground only."""
