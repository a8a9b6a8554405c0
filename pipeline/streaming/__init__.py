"""Batches served while the teacher works; imports `request` and what it imports."""
