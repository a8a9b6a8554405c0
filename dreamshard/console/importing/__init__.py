"""`dreamshard import FOLDER`: a dataset of features that somebody else recorded.

Reading order: shards (which members are whose, and of which sample), values (what a member's
tensors are), command (the copy, unit by unit through the same commits as any dataset's).
"""
