"""Train a diffusion teacher; imports `teachers` and `images`."""
