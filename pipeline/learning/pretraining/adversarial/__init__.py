"""Generators against discriminators: one trainer, and an objective for each published method."""
