"""Image sources: one file per family, behind the interface in `pipeline/images.py`."""
