"""Distillation methods, one file per paper: a batch in, loss terms out; imports up to `data`."""
