"""Converters of official checkpoints into the networks next door; imports `diffusion.networks`."""
