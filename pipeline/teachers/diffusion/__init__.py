"""Diffusion teachers; imports `teachers.recording` and `teachers.weights`."""
