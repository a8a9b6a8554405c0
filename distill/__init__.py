"""Use features: distil them into a backbone and judge it; imports `pipeline`, `storage` and the
ground.
"""
