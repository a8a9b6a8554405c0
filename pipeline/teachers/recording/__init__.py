"""Record a network's features: taps, side-stream copies, compiled blocks; imports nothing of ours
above `storage`.
"""
