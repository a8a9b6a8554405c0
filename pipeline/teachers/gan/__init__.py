"""Generators; imports `teachers.recording` and `teachers.weights`."""
