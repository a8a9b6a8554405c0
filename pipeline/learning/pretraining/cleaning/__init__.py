"""Train a copy of a diffusion teacher that sees clean images; imports what trains the teachers."""
