"""Backbones, and the folders that keep them; imports `configs`."""
